"""The kernels of latent attention against their definition: in the interpreter here, compiled on a
GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from unittest import mock

import pytest
import torch

from cgbench.kernels.fp8.block_scales import quantised, row_blocks_of
from cgbench.kernels.mla.latent_attention import LatentInput, absorb, decode_by_torch, project
from cgbench.kernels.mla.latent_rows import PairRotary
from cgbench.kernels.mla.latent_weights import LatentWeights
from tests.support.interpreter import check_interpreted, run_interpreted
from tests.support.latent_faults import FAULTS, is_seen

pytest.importorskip("triton")

ROOM = 150
SLOTS = 5
"""The last is scratch: two rows of the batch are padding, and write to it both."""
POISON = float("nan")


@dataclass(frozen=True)
class Case:
    """``tile``: rows and latents a program takes, as many as the engine would where None."""

    query_len: int
    num_heads: int = 4
    rank: int = 16
    rotary: int = 8
    key_size: int = 16
    value_size: int = 16
    tile: tuple[int, int] | None = None
    is_swapped: bool = False
    splits: int | None = None
    is_paired: bool = False
    block: int | None = None
    """Of FP8 weights."""


DEEPSEEK = {"rank": 512, "rotary": 64, "key_size": 128, "value_size": 128}
GLM = {"rank": 512, "rotary": 64, "key_size": 192, "value_size": 256}

CASES = [
    *(Case(query_len) for query_len in (1, 3, 17)),
    # 16 heads and 20 in a tile of 64 rows, and several tiles, the last of them a part.
    Case(1, num_heads=16, tile=(16, 16)),
    Case(4, num_heads=20, tile=(64, 32)),
    Case(17, num_heads=20, tile=(64, 64)),
    Case(4, num_heads=5, splits=5, tile=(32, 16)),
    Case(2, num_heads=3, splits=5, tile=(16, 64)),
    # Splits that the product with W_UV merges: of unequal lengths, and some idle.
    Case(1, num_heads=3, splits=5, tile=(16, 16)),
    Case(2, num_heads=3, rank=40, value_size=20, splits=2, tile=(16, 16)),
    # Queries that are rotated as they are loaded.
    Case(3, num_heads=5, rotary=8, is_paired=True),
    Case(2, num_heads=9, rotary=20, is_paired=True, tile=(16, 16), splits=2),
    # Latents as the left operand.
    Case(1, num_heads=16, tile=(16, 64), is_swapped=True),
    Case(3, num_heads=9, rank=40, rotary=20, tile=(32, 16), splits=3, is_swapped=True),
    Case(3, num_heads=5, rank=40, rotary=20, key_size=24, value_size=36),
    # So many programs that nothing is split, and nothing merged.
    Case(2, num_heads=16, tile=(16, 64)),
    Case(2, num_heads=2, **GLM),
    # FP8, in blocks of 16 rows and columns, and of a tensor.
    Case(3, num_heads=3, rank=48, key_size=16, value_size=32, block=16),
    Case(2, num_heads=2, rank=32, key_size=32, value_size=16, block=128),
]
DEVICE_CASES = [
    *(Case(query_len) for query_len in (2, 5, 8)),
    Case(4, num_heads=16, tile=(64, 32)),
    Case(4, num_heads=128, tile=(64, 16)),
    Case(1, num_heads=2, **DEEPSEEK),
    *CASES,
]


def max_error(
    case: Case, device: str, dtype: torch.dtype, kernels: ModuleType | None = None
) -> float:
    """Largest difference between the kernels and the definition, on rows of unequal length.

    ``kernels`` stands in for ``triton_latent``.
    """
    from cgbench.kernels.mla import triton_latent

    kernels = kernels or triton_latent
    torch.manual_seed(case.query_len)
    lengths = torch.tensor([0, 1, 63, ROOM - case.query_len, 7, 7], device=device)
    slots = torch.tensor([2, 0, 3, 1, SLOTS - 1, SLOTS - 1], device=device)
    positions = lengths[:, None] + torch.arange(case.query_len, device=device)
    caches = [torch.randn(SLOTS * ROOM, 1, case.rank + case.rotary, device=device, dtype=dtype)]
    caches.append(caches[0].clone())
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        caches[1][slot * ROOM + length : (slot + 1) * ROOM] = POISON
    new = random_input(case, len(slots), device, dtype)
    # Padding: the same rows twice, as two finished requests are not, but then nobody reads them.
    new = new._replace(latent=torch.cat([new.latent[:5], new.latent[4:5]]))
    expected = decode_by_torch(caches[0], new, slots, positions, ROOM)
    tile = case.tile and triton_latent.LatentTile(*case.tile, 4, 2, case.is_swapped)
    with mock.patch.object(kernels, "num_splits_of", splits_of(case, kernels)):
        got = kernels.decode(caches[1], new, slots, positions, ROOM, tile)
    assert got.shape == expected.shape
    live = ~caches[1].isnan()
    assert torch.equal(caches[0][live], caches[1][live])
    assert live.sum() == (lengths + case.query_len)[:5].sum() * (case.rank + case.rotary)
    assert not got.isnan().any()
    return (expected.float() - got.float()).abs().max().item()


def splits_of(case: Case, kernels: ModuleType) -> Callable[..., int]:
    """The engine's choice, or the case's: five splits of three blocks leave some idle."""
    own: Callable[..., int] = kernels.num_splits_of
    return own if case.splits is None else lambda *_: case.splits


def random_input(case: Case, batch: int, device: str, dtype: torch.dtype) -> LatentInput:
    """As transformers hands it over: the query a transposed view, latents one head."""
    key_dim = case.key_size + case.rotary
    query = torch.randn(batch, case.query_len, case.num_heads, key_dim, device=device, dtype=dtype)
    latent = torch.randn(
        batch, 1, case.query_len, case.rank + case.rotary, device=device, dtype=dtype
    )
    weights = random_weights(case, device, dtype)
    # Scores of a deviation near one, so that the softmax is neither flat nor a single key.
    scaling = 0.5 * (case.key_size + case.rotary) ** -0.5
    pairs = None
    if case.is_paired:
        angles = torch.rand(batch, case.query_len, case.rotary, device=device) * 6
        pairs = PairRotary(angles.cos().to(dtype), angles.sin().to(dtype))
    return LatentInput(query.transpose(1, 2), latent, weights, scaling, None, pairs)


@pytest.mark.parametrize(
    ("rows", "blocks", "expected"), [(256, 2, True), (256, 1, True), (256, 256, False)]
)
def test_a_scale_for_every_channel_is_left_to_the_definition(
    rows: int, blocks: int, expected: bool
) -> None:
    from cgbench.kernels.mla.triton_heads import can_multiply

    weight = torch.zeros(rows, 128, dtype=torch.float8_e4m3fn)
    weights = LatentWeights(
        weight, 64, 64, torch.ones(blocks, 1), torch.zeros(rows, dtype=torch.int32)
    )
    assert can_multiply(weights) is expected


def random_weights(case: Case, device: str, dtype: torch.dtype) -> LatentWeights:
    num_rows = case.num_heads * (case.key_size + case.value_size)
    values = torch.randn(num_rows, case.rank, device=device) * case.rank**-0.5
    if case.block is None:
        return LatentWeights(values.to(dtype), case.key_size, case.value_size)
    # Scales that differ: a block that reads another's is not a little wrong.
    values *= torch.rand(num_rows, 1, device=device).add(0.2)
    stored, scale = quantised(values.cpu(), case.block)
    blocks = row_blocks_of(num_rows, scale.shape[0])
    parts = (stored.to(device), scale.to(device), blocks.to(device))
    return LatentWeights(parts[0], case.key_size, case.value_size, *parts[1:])


def test_interpreter_equals_definition() -> None:
    check_interpreted(max_error, CASES, below=2e-5)


def seen_faults() -> list[str]:
    """The names of the planted faults that ``max_error`` sees, in several tiles and splits."""
    error = partial(max_error, Case(3, num_heads=8, tile=(16, 16), splits=3), "cpu")
    assert error(torch.float32) < 2e-5
    return [name for name in FAULTS if is_seen(name, error, below=2e-5)]


def test_planted_faults_are_seen() -> None:
    code = f"from {__name__} import seen_faults\nprint(*seen_faults())"
    assert sorted(run_interpreted(code).split()) == sorted(FAULTS)


def test_the_absorbed_form_is_the_expanded_one() -> None:
    """The definition against keys and values of every head, expanded by hand."""
    case = Case(3, rank=24, rotary=8, key_size=16, value_size=20)
    torch.manual_seed(0)
    new = random_input(case, 1, "cpu", torch.float64)
    cache = torch.randn(40, 1, case.rank + case.rotary, dtype=torch.float64)
    positions = torch.arange(17, 20)[None]
    got = decode_by_torch(cache, new, torch.tensor([1]), positions, 20)
    latents, rotary = cache[20:40, 0].split([case.rank, case.rotary], dim=-1)
    by_head = new.weights.weight.view(case.num_heads, -1, case.rank)
    for head in range(case.num_heads):
        keys = torch.cat([latents @ by_head[head, :16].T, rotary], dim=-1)
        values = latents @ by_head[head, 16:].T
        for i in range(case.query_len):
            seen = 18 + i
            weights = (keys[:seen] @ new.query[0, head, i] * new.scaling).softmax(0)
            torch.testing.assert_close(got[0, i, head], weights @ values[:seen])


def test_absorb_and_project_take_each_heads_own_half() -> None:
    case = Case(2, num_heads=3, rank=24, key_size=16, value_size=20)
    new = random_input(case, 2, "cpu", torch.float64)
    by_head = new.weights.weight.view(3, 36, 24)
    x = torch.randn(2, 3, 2, 24, dtype=torch.float64)
    expected = torch.einsum("bhsk,hkc->bhsc", new.no_rotary, by_head[:, :16])
    torch.testing.assert_close(absorb(new.no_rotary, new.weights), expected)
    expected = torch.einsum("bhsc,hvc->bhsv", x, by_head[:, 16:])
    torch.testing.assert_close(project(x, new.weights), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_float32_on_the_device(case: Case) -> None:
    assert max_error(case, "cuda", torch.float32) < 2e-5


@pytest.mark.gpu
@pytest.mark.parametrize("query_len", [1, 4])
@pytest.mark.parametrize("shape", [DEEPSEEK, GLM], ids=["deepseek", "glm"])
def test_fp8_weights_on_the_device(query_len: int, shape: dict[str, int]) -> None:
    """The definition rounds a weight's values to bfloat16, and the kernel does not."""
    case = Case(query_len, num_heads=16, block=128, **shape)
    assert max_error(case, "cuda", torch.bfloat16) < 0.06


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [16, 20, 128])
@pytest.mark.parametrize("query_len", [1, 4, 17])
@pytest.mark.parametrize("shape", [DEEPSEEK, GLM], ids=["deepseek", "glm"])
@pytest.mark.parametrize("splits", [None, 1, 2])
def test_bfloat16_on_the_device(
    heads: int, query_len: int, shape: dict[str, int], splits: int | None
) -> None:
    # A bfloat16 step or two at the size of the outputs: sums are rounded at other places.
    case = Case(query_len, heads, splits=splits, is_paired=splits == 2, **shape)
    assert max_error(case, "cuda", torch.bfloat16) < 0.04


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [DEEPSEEK, GLM], ids=["deepseek", "glm"])
def test_hopper_runs_gluon(shape: dict[str, int]) -> None:
    from cgbench.kernels.mla import gluon_latent, triton_latent

    if not triton_latent.is_hopper(torch.device("cuda")):
        pytest.skip("not Hopper")
    with mock.patch.object(gluon_latent, "attend", wraps=gluon_latent.attend) as attend:
        max_error(Case(1, num_heads=16, **shape), "cuda", torch.bfloat16)
    attend.assert_called_once()
