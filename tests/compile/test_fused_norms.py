"""Which norms are made one operator, with the sum that they are of, and that it computes as they
do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.compile.fusion import fuse
from cgbench.compile.operators import ADD_NORM, NORM, add_norm, norm
from tests.support.fusion import NEITHER, fused_in, graph_and_result

EPSILON = 1e-5


def root_mean_square(x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)


def as_in_llama(x: Tensor, gain: Tensor) -> Tensor:
    return gain * root_mean_square(x).to(x.dtype)


def as_in_gemma(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return (normed * (1.0 + gain.float())).type_as(x)


def of_a_sum(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_llama(x + x.sin(), gain)


def of_a_sum_as_in_gemma(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_gemma(x + x.sin(), gain)


def sum_returned_too(x: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
    total = x + x.sin()
    return as_in_llama(total, gain), total


def sum_used_before_its_norm(x: Tensor, gain: Tensor) -> Tensor:
    total = x + x.sin()
    return total.cos() + as_in_llama(total, gain)


def sum_normed_twice(x: Tensor, gain: Tensor) -> Tensor:
    total = x + x.sin()
    return as_in_llama(total, gain) * as_in_gemma(total, gain)


def norm_used_twice(x: Tensor, gain: Tensor) -> Tensor:
    normed = as_in_llama(x, gain)
    return normed * normed.sin()


def of_a_sum_with_a_row(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_llama(x + gain, gain)


def of_a_sum_with_a_number(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_llama(x + 1, gain)


def summand_written_before_the_norm(x: Tensor, gain: Tensor) -> Tensor:
    x = x.clone()
    total = x + x.sin()
    x += 1
    return as_in_llama(total, gain)


def written_within(x: Tensor, gain: Tensor) -> Tensor:
    x = x.clone()
    wide = x.to(torch.float32).clone()
    root = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + EPSILON)
    return gain * (wide * root).to(x.dtype)


def written_before_the_end(x: Tensor, gain: Tensor) -> Tensor:
    x = x.clone()
    normed = root_mean_square(x.bfloat16().to(x.dtype))
    x.view(-1).mul_(2)
    return gain * normed.to(x.dtype)


def mean_returned_too(x: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
    wide = x.to(torch.float32)
    mean = wide.pow(2).mean(-1, keepdim=True)
    return gain * (wide * torch.rsqrt(mean + EPSILON)).to(x.dtype), mean


def of_heads(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_llama(x[:, None], gain)


def gain_of_two(x: Tensor, gain: Tensor) -> Tensor:
    return as_in_llama(x, 2 * gain)


def two_more_than_gain(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPSILON)
    return (normed * (2.0 + gain.float())).type_as(x)


def of_cubes(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return gain * (wide * torch.rsqrt(wide.pow(4).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


def over_rows(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return gain * (wide * torch.rsqrt(wide.pow(2).mean(1, keepdim=True) + EPSILON)).to(x.dtype)


def by_another(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    mean = (wide + 1).pow(2).mean(-1, keepdim=True)
    return gain * (wide * torch.rsqrt(mean + EPSILON)).to(x.dtype)


def without_root(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    return gain * (wide * (wide.pow(2).mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


def with_epsilon_in_a_tensor(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + gain[0].abs())
    return gain * normed.to(x.dtype)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (as_in_llama, [NORM]),
        (as_in_gemma, [NORM]),
        (of_a_sum, [ADD_NORM]),
        (of_a_sum_as_in_gemma, [ADD_NORM]),
        (sum_returned_too, [ADD_NORM]),
        (sum_used_before_its_norm, [ADD_NORM]),
        (sum_normed_twice, [ADD_NORM, NORM]),
        (norm_used_twice, [NORM]),
        (of_a_sum_with_a_row, [NORM]),
        (of_a_sum_with_a_number, [NORM]),
        (summand_written_before_the_norm, [NORM]),
        (written_within, NEITHER),
        (written_before_the_end, NEITHER),
        (mean_returned_too, NEITHER),
        (of_heads, NEITHER),
        (gain_of_two, NEITHER),
        (two_more_than_gain, NEITHER),
        (of_cubes, NEITHER),
        (over_rows, NEITHER),
        (by_another, NEITHER),
        (without_root, NEITHER),
        (with_epsilon_in_a_tensor, NEITHER),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_which_norms_are_taken_over(function: Callable[..., Any], expected: list[Any]) -> None:
    inputs = torch.randn(2, 3, 5), torch.randn(5)
    graph, got = graph_and_result(function, inputs, fuse)
    torch.testing.assert_close(got, function(*inputs))
    assert fused_in(graph) == expected


def test_a_norm_that_widens_its_rows_is_left() -> None:
    inputs = torch.randn(2, 3, 5).bfloat16(), torch.randn(5)
    graph, got = graph_and_result(as_in_llama, inputs, fuse)
    assert got.dtype == torch.float32 and fused_in(graph) == NEITHER


@pytest.mark.parametrize("function", [as_in_llama, as_in_gemma])
@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (1,)])
def test_only_a_gain_of_each_column_is_a_norms(
    function: Callable[..., Any], shape: tuple[int, ...]
) -> None:
    torch._dynamo.reset()
    inputs = torch.randn(2, 3, 5), torch.randn(shape)
    graph, got = graph_and_result(function, inputs, fuse)
    torch.testing.assert_close(got, function(*inputs))
    assert fused_in(graph) == NEITHER


class WithEpsilon(torch.nn.Module):
    """Its epsilon is read where it is used, behind the sum, as in a model's norms."""

    def __init__(self) -> None:
        super().__init__()
        self.epsilon = 0.5

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        total = x + x.sin()
        wide = total.to(torch.float32)
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return gain * normed.to(x.dtype)


def test_a_modules_epsilon_is_its_own() -> None:
    module, other = WithEpsilon(), WithEpsilon()
    other.epsilon = 2.0
    inputs = torch.randn(2, 3, 5), torch.randn(5)
    for each in (module, other):
        graph, got = graph_and_result(each, inputs, fuse)
        torch.testing.assert_close(got, each(*inputs))
        assert fused_in(graph) == [ADD_NORM]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_are_what_they_replace(dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 2, 3, 16).to(dtype)
    gain = torch.randn(16).to(dtype)
    for offset, function in ((0.0, as_in_llama), (1.0, as_in_gemma)):
        assert torch.equal(norm(x, gain, EPSILON, offset), function(x, gain))
        total, normed = add_norm(x, residual, gain, EPSILON, offset)
        assert torch.equal(total, x + residual)
        assert torch.equal(normed, function(x + residual, gain))
