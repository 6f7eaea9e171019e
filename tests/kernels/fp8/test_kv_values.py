"""The values of FP8 keys and values, by hand and through the cache."""

import pytest
import torch

from cgbench.engine.backends import sdpa_decode
from cgbench.engine.calls import Rows, store
from cgbench.engine.kv import KvCache
from cgbench.kernels.attention import AttentionInput, live_rows, sdpa
from cgbench.kernels.fp8.kv_values import LEAST_SCALE, quantised_rows, row_scales, row_values
from cgbench.models.quantised.kv_format import KvFormat
from tests.support.fp8_kv import kept_by_hand

ROOM, SLOTS, HEADS = 12, 3, 2
STATED = (0.01, 0.002)


def make_cache(kv_format: KvFormat, dtype: torch.dtype = torch.float32) -> KvCache:
    return KvCache(
        {0: ((HEADS, 8), (HEADS, 6))},
        max_batch_size=SLOTS - 1,
        room=ROOM,
        dtype=dtype,
        device=torch.device("cpu"),
        kv_format=kv_format,
    )


def new_rows(query_len: int, dtype: torch.dtype = torch.float32) -> AttentionInput:
    """Of two requests; heads and tokens of very different sizes."""
    torch.manual_seed(query_len)
    sizes = torch.exp2(8 * torch.randn(2, HEADS, query_len, 1))
    key = torch.randn(2, HEADS, query_len, 8) * sizes
    value = torch.randn(2, HEADS, query_len, 6) / sizes
    query = torch.randn(2, 2 * HEADS, query_len, 8) / sizes.amax()
    return AttentionInput(query.to(dtype), key.to(dtype), value.to(dtype), 0.3, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_those_by_hand(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(500, 16) * torch.exp2(4 * torch.randn(500, 1).clamp(-2, 2))).to(dtype)
    scales = row_scales(rows)
    stored = quantised_rows(rows, scales)
    assert torch.equal(stored.float().abs().amax(-1), torch.full((500,), 448.0))
    assert torch.equal(row_values(stored, scales, dtype), kept_by_hand(rows))
    stated = torch.tensor([0.25])
    clamped = row_values(quantised_rows(rows, stated), stated, dtype)
    assert torch.equal(clamped, kept_by_hand(rows, 0.25))
    assert clamped.abs().max() == 0.25 * 448


def test_rows_of_zeros_and_of_nan() -> None:
    rows = torch.tensor([[0.0, 0.0], [float("nan"), 1.0], [1e-30, 0.0]])
    scales = row_scales(rows)
    assert scales[0] == scales[2] == LEAST_SCALE
    values = row_values(quantised_rows(rows, scales), scales, torch.float32)
    assert torch.equal(values[0], torch.zeros(2)) and torch.equal(values[2], torch.zeros(2))
    assert values[1].isnan().all()


@pytest.mark.parametrize("stated", [{}, {0: STATED}], ids=["by token", "by tensor"])
def test_what_is_stored_is_read(stated: dict[int, tuple[float, float]]) -> None:
    """Prompts of five tokens in slots 2 and 0, then three rows more after 5 and after 4."""
    cache = make_cache(KvFormat(True, stated))
    layer, slots = cache.layers[0], torch.tensor([2, 0])
    of_key, of_value = stated.get(0, (None, None))
    expected = torch.zeros(SLOTS, HEADS, ROOM, 8), torch.zeros(SLOTS, HEADS, ROOM, 6)
    for starts, length in (((0, 0), 5), ((5, 4), 3)):
        qkv = new_rows(length)
        positions = torch.tensor(starts)[:, None] + torch.arange(length)
        kept = store(layer, Rows(cache, slots, positions), qkv)
        wanted = kept_by_hand(qkv.key, of_key), kept_by_hand(qkv.value, of_value)
        assert torch.equal(kept.key, wanted[0]) and torch.equal(kept.value, wanted[1])
        for row, (slot, start) in enumerate(zip((2, 0), starts, strict=True)):
            for whole, part in zip(expected, wanted, strict=True):
                whole[slot, :, start : start + length] = part[row]
    every = live_rows(layer, torch.arange(SLOTS), ROOM, torch.float32)
    assert all(torch.equal(*pair) for pair in zip(every, expected, strict=True))
    assert layer.keys.dtype == torch.float8_e4m3fn and layer.keys.nbytes == layer.keys.numel()


def test_attention_is_over_the_values() -> None:
    """The definition is that of plain keys and values which are worth the same."""
    cache, plain = make_cache(KvFormat(is_fp8=True)), make_cache(KvFormat())
    slots, positions = torch.tensor([1, 0]), torch.tensor([[0], [0]]) + torch.arange(4)
    rows, qkv = Rows(cache, slots, positions), new_rows(4)
    got = sdpa_decode(cache.layers[0], rows, qkv)
    kept = store(plain.layers[0], Rows(plain, slots, positions), qkv)._replace(
        key=kept_by_hand(qkv.key), value=kept_by_hand(qkv.value)
    )
    store(plain.layers[0], Rows(plain, slots, positions), kept)
    expected = sdpa(plain.layers[0], kept, slots, positions, ROOM)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_bytes_hold_the_scales() -> None:
    tokens = SLOTS * ROOM
    by_token = make_cache(KvFormat(is_fp8=True)).num_bytes
    assert by_token == tokens * HEADS * (8 + 6 + 2 * 4)
    assert make_cache(KvFormat(True, {0: STATED})).num_bytes == tokens * HEADS * (8 + 6) + 8
    assert make_cache(KvFormat()).num_bytes == tokens * HEADS * (8 + 6) * 4
