"""Attention and linear layers as single operators, which a compiler does not look into.

Inlined, FlexAttention has been wrong under ``torch.compile`` (relative error 1.35 where rounding is
0.06), and a KV write that the compiler sees makes it copy the cache at every layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgbench.models.attention_hook import AttentionCall, AttentionInput
from cgbench.models.packing import PackedFirst

_under_way: list[AttentionCall] = []


@contextmanager
def under_way(call: AttentionCall) -> Iterator[None]:
    """``call`` answers the attention operators that run meanwhile."""
    _under_way.append(call)
    try:
        yield
    finally:
        _under_way.pop()


@torch.library.custom_op("cgbench::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer_number: Tensor,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    """``AttentionCall.attend`` of the call that is under way. ``layer_number`` is a tensor on the
    host: a plain number would be compiled in, and make every layer another form."""
    qkv = AttentionInput(query, key, value, scaling, sliding_window)
    return _under_way[-1].attend(int(layer_number), qkv).contiguous()


@attend.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer_number: Tensor,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    batch, num_heads, query_len, _ = query.shape
    return query.new_empty(batch, query_len, num_heads, value.shape[3])


class OperatorCall:
    """The ``AttentionCall`` that a compiler traces: each layer's attention is one operator."""

    def attend(self, layer_idx: Tensor, qkv: AttentionInput) -> Tensor:
        """As ``AttentionCall.attend``, but for the number of the layer, a tensor."""
        out: Tensor = attend(
            qkv.query, qkv.key, qkv.value, layer_idx, qkv.scaling, qkv.sliding_window
        )
        return out


@torch.library.custom_op("cgbench::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``; of few rows of half precision on CUDA by the kernel made for them."""
    if x.is_cuda:
        # Imported here, for triton is there only beside a CUDA build of torch.
        from cgbench.engine import triton_linear

        if triton_linear.can_stream(x, weight):
            return triton_linear.linear(x, weight, bias)
    return F.linear(x, weight, bias)


@linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class OperatorLinear(nn.Linear):
    """A linear layer that is one operator."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias)
        return out


def use_linear_operator(module: nn.Module) -> None:
    """Make every linear layer in ``module`` one operator, in place; weights stay where they are."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = OperatorLinear
        elif isinstance(part, PackedFirst):
            part.linear = linear
