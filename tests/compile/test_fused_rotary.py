"""Which rotary embedding a product takes over, and that attention is given the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.compile.fusion import fuse
from cgbench.compile.operators import ATTEND, ROTATED_LINEAR, under_way
from cgbench.kernels.attention import AttentionInput
from tests.support.fusion import NEITHER, fused_in, graph_and_result

linear = torch.ops.cgbench.linear.default

HEADS, KV_HEADS, SIZE = 4, 2, 8
SIZES = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]


class Recorder:
    """An attention call that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[AttentionInput] = []

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        self.given.append(qkv)
        return torch.zeros_like(qkv.query).transpose(1, 2).contiguous()

    def delta_rule(self, layer_idx: int, rows: object) -> Tensor:
        raise AssertionError


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out: Tensor = ATTEND(query, key, value, torch.tensor(0), 1.0, None, None)
    return out


def in_heads(x: Tensor) -> Tensor:
    batch, length, _ = x.shape
    return x.view((batch, length, -1, SIZE)).transpose(1, 2)


def parts_of(product: Tensor) -> list[Tensor]:
    """Query, key and value in heads."""
    return [in_heads(part) for part in product.split(SIZES, dim=-1)]


def turned(x: Tensor, cos: Tensor, sin: Tensor, half: int = SIZE // 2) -> Tensor:
    across = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + across * sin


def as_published(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def with_bias(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, weight[:, 0]))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def by_wider_tables(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.double().unsqueeze(1), sin.double().unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def by_tables_made_here(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = (2 * cos).unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def heads_normed_first(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query.tanh(), cos, sin), turned(key, cos, sin), value)


def in_another_order(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    value, key, query = linear(x, weight, None).split(SIZES[::-1], dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(
        turned(in_heads(query), cos, sin), turned(in_heads(key), cos, sin), in_heads(value)
    )


def parts_of_one_size(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value, _ = linear(x, weight, None).split(KV_HEADS * SIZE, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(
        turned(in_heads(query), cos, sin), turned(in_heads(key), cos, sin), in_heads(value)
    )


def sums_that_are_none(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    across = torch.cat((-query[..., 4:], query[..., :4]), dim=-1)
    return attended(2 * cos + across * sin, turned(key, cos, sin), value)


def of_two_products(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, _, value = parts_of(linear(x, weight, None))
    _, key, _ = parts_of(linear(x.sin(), weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def product_used_elsewhere(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    product = linear(x, weight, None)
    query, key, value = parts_of(product)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value) + product.sum()


def key_used_elsewhere(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value) + key.sum()


def no_product(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(x @ weight.T)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, cos, sin), value)


def of_a_part(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos[..., :4].unsqueeze(1), sin[..., :4].unsqueeze(1)
    rotated = [
        torch.cat([turned(each[..., :4], cos, sin, 2), each[..., 4:]], dim=-1)
        for each in (query, key)
    ]
    return attended(*rotated, value)


def of_the_query_alone(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    return attended(turned(query, cos.unsqueeze(1), sin.unsqueeze(1)), key, value)


def by_other_tables(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin), turned(key, sin, cos), value)


def by_neighbours(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def neighbours(each: Tensor) -> Tensor:
        pairs = torch.stack((-each[..., 1::2], each[..., 0::2]), dim=-1)
        return each * cos + pairs.flatten(-2) * sin

    return attended(neighbours(query), neighbours(key), value)


def the_other_way(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)

    def back(each: Tensor) -> Tensor:
        return each * cos + torch.cat((each[..., 4:], -each[..., :4]), dim=-1) * sin

    return attended(back(query), back(key), value)


def cut_unevenly(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return attended(turned(query, cos, sin, 2), turned(key, cos, sin, 2), value)


def halves_by_index(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    query, key, value = parts_of(linear(x, weight, None))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    last = list(range(1, SIZE))

    def by_index(each: Tensor) -> Tensor:
        return each * cos + torch.cat((-each[..., [0]], each[..., last]), dim=-1) * sin

    return attended(by_index(query), by_index(key), value)


def written_before_attention(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    product = linear(x, weight, None)
    query, key, value = parts_of(product)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    query, key = turned(query, cos, sin), turned(key, cos, sin)
    value.zero_()
    return attended(query, key, value)


ROTATED = [ROTATED_LINEAR]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (as_published, ROTATED),
        (with_bias, ROTATED),
        (by_wider_tables, NEITHER),
        (by_tables_made_here, NEITHER),
        (heads_normed_first, NEITHER),
        (in_another_order, NEITHER),
        (parts_of_one_size, NEITHER),
        (sums_that_are_none, NEITHER),
        (of_two_products, NEITHER),
        (product_used_elsewhere, NEITHER),
        (key_used_elsewhere, NEITHER),
        (no_product, NEITHER),
        (of_a_part, NEITHER),
        (of_the_query_alone, NEITHER),
        (by_other_tables, NEITHER),
        (by_neighbours, NEITHER),
        (the_other_way, NEITHER),
        (cut_unevenly, NEITHER),
        (halves_by_index, NEITHER),
        (written_before_attention, NEITHER),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_which_rotary_a_product_takes_over(
    function: Callable[..., Any], expected: list[Any]
) -> None:
    given = given_to_attention(function, (2, 3, SIZE), expected)
    for one, other in given:
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 3, SIZE), ROTATED), ((2, 1, SIZE), NEITHER), ((2, 3, 1), NEITHER)],
    ids=str,
)
def test_tables_have_a_row_for_every_token(
    shape: tuple[int, int, int], expected: list[Any]
) -> None:
    for one, other in given_to_attention(as_published, shape, expected):
        assert torch.equal(one, other)


def given_to_attention(
    function: Callable[..., Any], table_shape: tuple[int, int, int], expected: list[Any]
) -> list[tuple[Tensor, Tensor]]:
    """Query, key and value as ``function`` hands them over, and as its graph does after fusing,
    which has the ``expected`` operators."""
    torch._dynamo.reset()
    inputs = (
        torch.randn(2, 3, 5),
        torch.randn(sum(SIZES), 5),
        torch.randn(table_shape),
        torch.randn(table_shape),
    )
    for table in inputs[2:]:
        # As in a model, whose views of heads say how large they are.
        torch._dynamo.mark_static(table, 2)
    torch._dynamo.mark_static(inputs[1], 0)
    recorder = Recorder()
    with under_way(recorder):
        function(*inputs)
        graph, _ = graph_and_result(function, inputs, fuse)
    assert fused_in(graph) == expected
    one, other = recorder.given
    return list(zip(one[:3], other[:3], strict=True))
