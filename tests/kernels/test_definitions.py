"""What the kernels compute, as torch defines it: functions of tensors, without an engine."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mimo_v2_flash import modeling_mimo_v2_flash

from cgbench.compile import operators
from cgbench.engine import calls
from cgbench.kernels import linear, norm
from cgbench.kernels.attention import AttentionInput, LayerKv, sdpa
from cgbench.kernels.counters import arrivals

CPU = torch.device("cpu")
ROOM = 6


def test_products_end_as_torch_would_end_them() -> None:
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(12, 8), torch.randn(12)
    residual = torch.randn(2, 3, 12)
    product = F.linear(x, weight, bias)
    gate, up = product.chunk(2, dim=-1)
    assert torch.equal(linear.linear(x, weight, bias), product)
    assert torch.equal(linear.gated_linear(x, weight, bias), F.silu(gate) * up)
    assert torch.equal(linear.linear_add(x, weight, bias, residual), residual + product)


def test_rotary_turns_whole_heads_and_leaves_the_rest() -> None:
    """By a quarter turn the halves of a head change places, one with its sign turned."""
    x, weight = torch.randn(1, 2, 8), torch.randn(12, 8)
    cos, sin = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    out = linear.rotated_linear(x, weight, None, cos, sin, 8)
    low, high = F.linear(x, weight)[..., :8].unflatten(-1, (2, 4)).chunk(2, dim=-1)
    assert torch.equal(out[..., :8], torch.cat((-high, low), dim=-1).flatten(2))
    assert torch.equal(out[..., 8:], F.linear(x, weight)[..., 8:])


def test_a_norm_of_a_sum_comes_with_the_sum() -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    total, normed = norm.add_norm(x, residual, weight, 1e-5, 1.0)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, norm.norm(total, weight, 1e-5, 1.0))
    expected = F.rms_norm(total, (8,), weight + 1, eps=1e-5)
    torch.testing.assert_close(normed, expected)


def test_the_operators_compute_the_same() -> None:
    x, weight = torch.randn(2, 8), torch.randn(12, 8)
    residual, gain = torch.randn(2, 12), torch.randn(8)
    assert torch.equal(operators.linear(x, weight, None), linear.linear(x, weight, None))
    added = operators.linear_add(x, weight, None, residual)
    assert torch.equal(added, linear.linear_add(x, weight, None, residual))
    assert torch.equal(operators.norm(x, gain, 1e-5, 0.0), norm.norm(x, gain, 1e-5, 0.0))


def test_attention_sees_the_live_rows_of_its_slot_alone() -> None:
    """Against softmax by hand, with NaN in every slot that is another's."""
    kv = LayerKv(*(torch.full((3 * ROOM, 1, 4), float("nan")) for _ in range(2)))
    kv.keys[ROOM : 2 * ROOM], kv.values[ROOM : 2 * ROOM] = torch.randn(2, ROOM, 1, 4)
    query = torch.randn(1, 1, 2, 4)
    slots, positions = torch.tensor([1]), torch.tensor([[3, 4]])
    for window in (None, 2):
        qkv = AttentionInput(query, query, query, 0.5, window)
        out = sdpa(kv, qkv, slots, positions, ROOM)
        for i, position in enumerate((3, 4)):
            first = 0 if window is None else position - window + 1
            seen = slice(ROOM + first, ROOM + position + 1)
            expected = by_hand(query[0, 0, i], kv.keys[seen, 0], kv.values[seen, 0])
            torch.testing.assert_close(out[0, i, 0], expected)


@pytest.mark.parametrize("window", [None, 6])
def test_sinks_are_gpt_oss_and_mimo_v2s(window: int | None) -> None:
    """In decode and in prefill, whole and a few queries at a time, with values of another size."""
    heads, kv_heads, length = 6, 2, 11
    query, key = torch.randn(2, heads, length, 8), torch.randn(2, kv_heads, length, 8)
    value, sinks = torch.randn(2, kv_heads, length, 5), 2 * torch.randn(heads)
    number = torch.arange(length)
    seen = number <= number[:, None]
    if window is not None:
        seen &= number > number[:, None] - window
    mask = torch.zeros(length, length).masked_fill(~seen, float("-inf"))
    module = SimpleNamespace(num_key_value_groups=3, sinks=sinks, training=False)
    qkv = AttentionInput(query, key, value, 0.3, window, sinks)
    for theirs in (modeling_gpt_oss, modeling_mimo_v2_flash):
        expected, _ = theirs.eager_attention_forward(module, query, key, value, mask, 0.3)
        for at_once in (1, 1 << 20):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(calls, "SCORES_AT_ONCE", at_once)
                out = calls.prefill_with_sinks(qkv).transpose(1, 2)
            torch.testing.assert_close(out, expected)
        kv = LayerKv(*(each.transpose(1, 2).flatten(0, 1) for each in (key, value)))
        newest = qkv._replace(query=query[:, :, -4:])
        decoded = sdpa(kv, newest, torch.tensor([0, 1]), number[None, -4:].expand(2, -1), length)
        torch.testing.assert_close(decoded, expected[:, -4:])


def by_hand(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (0.5 * keys @ query).softmax(0) @ values


def test_a_kernel_keeps_its_counters() -> None:
    """A captured graph holds their address."""
    ours = arrivals("a kernel", 4, CPU)
    assert arrivals("a kernel", 4, CPU) is ours
    assert arrivals("another", 4, CPU) is not ours
    assert (ours.dtype, ours.tolist()) == (torch.int32, [0, 0, 0, 0])
