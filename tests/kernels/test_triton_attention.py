"""The Triton kernels against the reference backend: in the interpreter here, compiled on a GPU."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from cgbench.engine.backends import sdpa_decode, triton_decode
from cgbench.engine.calls import Rows
from cgbench.engine.kv import KvCache
from cgbench.kernels.attention import AttentionInput
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

ROOM = 150
SLOTS = 4
POISON = float("nan")


@dataclass(frozen=True)
class Case:
    query_len: int
    num_heads: int = 4
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    sinks: bool = False
    causal: bool = True


CASES = [
    *(Case(query_len) for query_len in (1, 4, 17)),
    # More rows than a tile holds: programs share the group.
    Case(12, num_heads=20, kv_heads=1, value_dim=128, window=5, sinks=True),
    Case(4, num_heads=2, kv_heads=2),
    Case(4, num_heads=8, kv_heads=1),
    Case(3, num_heads=6, kv_heads=3, key_dim=24, value_dim=40),
    Case(2, window=7),
    Case(5, window=70),
    Case(4, window=500),
    # The new rows leave one another's window too.
    Case(9, window=4),
    # Sinks, beside windows, and unequal sizes of key and value.
    Case(4, sinks=True),
    Case(4, num_heads=8, kv_heads=2, key_dim=24, value_dim=16, window=7, sinks=True),
    # So many programs that nothing is split, and nothing merged.
    Case(1, num_heads=20, kv_heads=20, sinks=True),
    # A parallel drafter's block, whose rows see the later ones too.
    Case(4, causal=False),
    Case(17, num_heads=16, kv_heads=2, causal=False),
    Case(6, num_heads=6, kv_heads=3, key_dim=24, value_dim=40, window=7, causal=False),
    Case(3, num_heads=20, kv_heads=20, causal=False),
]
DEVICE_CASES = [
    *(Case(query_len) for query_len in (2, 3, 5, 6, 7, 8, 9)),
    Case(17, num_heads=16, kv_heads=2, value_dim=256),
    Case(2, num_heads=20, kv_heads=20),
    Case(11, num_heads=6, kv_heads=2, key_dim=24, value_dim=16, window=4, sinks=True),
    *CASES,
]


def max_error(case: Case, device: str, dtype: torch.dtype) -> float:
    """Largest difference between the two backends, on rows of very unequal length."""
    torch.manual_seed(case.query_len)
    lengths = torch.tensor([0, 1, 63, ROOM - case.query_len], device=device)
    caches = [make_cache(case, device, dtype) for _ in range(2)]
    for layer in (0, 1):
        for tensor in ("keys", "values"):
            filled = torch.randn_like(getattr(caches[0].layers[layer], tensor))
            for cache in caches:
                getattr(cache.layers[layer], tensor).copy_(filled)
    slots = torch.tensor([2, 0, 3, 1], device=device)
    positions = lengths[:, None] + torch.arange(case.query_len, device=device)
    poison_rows_from(lengths, caches[1], slots)
    new = [randn(case, heads, dim, device, dtype) for heads, dim in shapes(case)]
    # Some sinks outweigh every key, and some none.
    sinks = 4 * torch.randn(case.num_heads, device=device).to(dtype) if case.sinks else None
    qkv = AttentionInput(*new, 0.25, case.window, sinks, case.causal)
    outs = [
        backend(cache.layers[1], Rows(cache, slots, positions), qkv)
        for backend, cache in zip((sdpa_decode, triton_decode), caches, strict=True)
    ]
    for name in ("keys", "values"):
        expected, got = (getattr(cache.layers[1], name) for cache in caches)
        live = ~got.isnan()
        assert torch.equal(expected[live], got[live])
        assert live.sum() == (lengths + case.query_len).sum() * got[0].numel()
    assert not outs[1].isnan().any()
    return (outs[0].float() - outs[1].float()).abs().max().item()


def shapes(case: Case) -> list[tuple[int, int]]:
    return [
        (case.num_heads, case.key_dim),
        (case.kv_heads, case.key_dim),
        (case.kv_heads, case.value_dim),
    ]


def randn(case: Case, heads: int, dim: int, device: str, dtype: torch.dtype) -> Tensor:
    """``[B, heads, S, dim]`` as transformers hands it over: a transposed view."""
    return torch.randn(SLOTS, case.query_len, heads, dim, device=device, dtype=dtype).transpose(
        1, 2
    )


def make_cache(case: Case, device: str, dtype: torch.dtype) -> KvCache:
    shape = ((case.kv_heads, case.key_dim), (case.kv_heads, case.value_dim))
    return KvCache(
        {0: shape, 1: shape},
        max_batch_size=SLOTS - 1,
        room=ROOM,
        dtype=dtype,
        device=torch.device(device),
    )


def poison_rows_from(lengths: Tensor, cache: KvCache, slots: Tensor) -> None:
    """NaN past each slot's cached rows: the kernels must not read there."""
    for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
        for layer in cache.layers.values():
            layer.keys[slot * ROOM + length : (slot + 1) * ROOM] = POISON
            layer.values[slot * ROOM + length : (slot + 1) * ROOM] = POISON


def test_interpreter_equals_reference() -> None:
    check_interpreted(max_error, CASES, below=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_float32_on_the_device(case: Case) -> None:
    assert max_error(case, "cuda", torch.float32) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_bfloat16_on_the_device(case: Case) -> None:
    # One bfloat16 step at the size of the outputs, for the two round at different places.
    assert max_error(case, "cuda", torch.bfloat16) < 0.04
