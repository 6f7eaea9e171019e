"""The attention kernel over FP8 keys and values against their definition: in the interpreter
here, compiled on a GPU."""

from dataclasses import dataclass

import pytest
import torch

from cgbench.engine.backends import sdpa_decode, triton_decode
from cgbench.engine.calls import Rows
from cgbench.engine.kv import KvCache
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.fp8.kv_values import quantised_rows, row_scales
from cgbench.models.quantised.kv_format import KvFormat
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

ROOM = 150
SLOTS = 4
STATED = (0.02, 0.01)
POISON = float("nan")
LEAST_SHARE = 2.0**-24
"""Of the largest value: what float16 can still tell beside a sink."""


@dataclass(frozen=True)
class Case:
    query_len: int
    num_heads: int = 4
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    sinks: bool = False
    by_tensor: bool = False


CASES = [
    Case(1),
    Case(9, num_heads=8, kv_heads=1),
    # More rows than a tile holds: programs share the group.
    Case(17, num_heads=12, kv_heads=1, value_dim=128),
    Case(3, num_heads=6, kv_heads=3, key_dim=24, value_dim=40),
    Case(5, window=70),
    Case(4, num_heads=8, kv_heads=2, key_dim=24, value_dim=16, window=7, sinks=True),
    # So many programs that nothing is split, and nothing merged.
    Case(1, num_heads=20, kv_heads=20, sinks=True),
    Case(4, by_tensor=True),
    Case(4, num_heads=8, kv_heads=2, window=7, sinks=True, by_tensor=True),
]
DEVICE_CASES = [*CASES, Case(2, num_heads=20, kv_heads=20)]


def max_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """Largest difference from the definition in float32, over the largest output of its row.

    Rows are of very unequal length, and tokens' sizes of very unequal size. What is stored is the
    same bit for bit. A row may be next to nothing beside its sink, so its values bound it below.
    """
    torch.manual_seed(case.query_len)
    lengths = torch.tensor([0, 1, 63, ROOM - case.query_len], device=device)
    stated = dict.fromkeys((0, 1), STATED) if case.by_tensor else {}
    caches = [
        make_cache(case, KvFormat(True, stated), device, each) for each in (torch.float32, dtype)
    ]
    fill(caches, case)
    slots = torch.tensor([2, 0, 3, 1], device=device)
    positions = lengths[:, None] + torch.arange(case.query_len, device=device)
    poison_rows_from(lengths, caches[1], slots)
    new = [
        unequal(SLOTS, case.query_len, heads, dim, device=device).to(dtype).transpose(1, 2)
        for heads, dim in ((case.kv_heads, case.key_dim), (case.kv_heads, case.value_dim))
    ]
    query = torch.randn(SLOTS, case.query_len, case.num_heads, case.key_dim, device=device)
    sinks = 4 * torch.randn(case.num_heads, device=device).to(dtype) if case.sinks else None
    qkv = AttentionInput(query.to(dtype).transpose(1, 2), *new, 0.25, case.window, sinks)
    expected, got = (
        backend(cache.layers[1], Rows(cache, slots, positions), each).float()
        for backend, cache, each in zip(
            (sdpa_decode, triton_decode), caches, (exact(qkv), qkv), strict=True
        )
    )
    ours, its = (cache.layers[1].of_slots(SLOTS) for cache in caches)
    for name in ours:
        for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
            live = slice(0, length + case.query_len)
            one, other = ours[name][slot, live].float(), its[name][slot, live].float()
            assert torch.equal(one, other), name
            assert name.endswith("scales") or its[name][slot, live.stop :].float().isnan().all()
    assert not got.isnan().any()
    least = LEAST_SHARE * qkv.value.float().abs().amax()
    return ((expected - got).abs().amax(-1) / expected.abs().amax(-1).clamp_min(least)).max().item()


def exact(qkv: AttentionInput) -> AttentionInput:
    """The same numbers in float32, so that the definition rounds nothing."""
    sinks = None if qkv.sinks is None else qkv.sinks.float()
    return qkv._replace(
        query=qkv.query.float(), key=qkv.key.float(), value=qkv.value.float(), sinks=sinks
    )


def unequal(*shape: int, device: str) -> torch.Tensor:
    """Rows whose sizes are between a hundredth and some dozens."""
    sizes = torch.exp2(2 * torch.randn(*shape[:-1], 1, device=device).clamp(-3, 3))
    return torch.randn(*shape, device=device) * sizes


def make_cache(case: Case, kv_format: KvFormat, device: str, dtype: torch.dtype) -> KvCache:
    shape = ((case.kv_heads, case.key_dim), (case.kv_heads, case.value_dim))
    return KvCache(
        {0: shape, 1: shape},
        max_batch_size=SLOTS - 1,
        room=ROOM,
        dtype=dtype,
        device=torch.device(device),
        kv_format=kv_format,
    )


def fill(caches: list[KvCache], case: Case) -> None:
    """The same rows in every cache."""
    device = str(caches[0].request_keys.device)
    for layer in caches[0].layers:
        sizes = (("keys", case.key_dim), ("values", case.value_dim))
        for (name, dim), stated in zip(sizes, STATED, strict=True):
            rows = unequal(SLOTS, ROOM, case.kv_heads, dim, device=device)
            own = rows.new_tensor([stated]) if case.by_tensor else row_scales(rows)
            for cache in caches:
                named = cache.layers[layer].of_slots(SLOTS)
                named[name].copy_(quantised_rows(rows, own))
                if not case.by_tensor:
                    named[f"{name[:-1]}_scales"].copy_(own[..., None])


def poison_rows_from(lengths: torch.Tensor, cache: KvCache, slots: torch.Tensor) -> None:
    """NaN past each slot's cached rows, scales too: the kernels must not read there."""
    for layer in cache.layers.values():
        for tensor in layer.of_slots(SLOTS).values():
            for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
                tensor[slot, length:] = POISON


def test_interpreter_equals_definition() -> None:
    check_interpreted(max_error, CASES, below=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "below"),
    [(torch.float32, 1e-5), (torch.bfloat16, 0.01), (torch.float16, 0.003)],
    ids=str,
)
def test_on_the_device(case: Case, dtype: torch.dtype, below: float) -> None:
    """In lower precision a few steps of it: weights and the output are rounded."""
    assert max_error(case, "cuda", dtype) < below
