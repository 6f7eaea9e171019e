"""Attention, recurrences, products and sums over ranks as operators: no compiler looks inside.

Inlined, FlexAttention has been wrong under ``torch.compile`` (relative error 1.35 where rounding is
0.06), and a KV write that the compiler sees makes it copy the cache at every layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgbench.kernels.attention_input import AttentionInput
from cgbench.kernels.delta_net import DeltaNet, DeltaRows
from cgbench.kernels.moe.expert_products import Padding
from cgbench.kernels.norm import normed
from cgbench.models.attention_hook import AttentionCall
from cgbench.models.projections import PackedFirst
from cgbench.models.recurrent_hook import RecurrentCall
from cgbench.models.shards import SummedLinear, SumOutput, VocabLinear
from cgbench.parallel.collectives import sum_over_ranks


class LayerCall(AttentionCall, RecurrentCall, Protocol):
    """Both calls in one, as a decode step's is."""

    @property
    def padding(self) -> Padding:
        """Which tokens are padding."""
        ...


_under_way: list[LayerCall] = []


@contextmanager
def under_way(call: LayerCall) -> Iterator[None]:
    """``call`` answers the operators of attention and recurrence that run meanwhile."""
    _under_way.append(call)
    try:
        yield
    finally:
        _under_way.pop()


def under_way_call() -> LayerCall:
    """The call that answers now."""
    return _under_way[-1]


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


@torch.library.custom_op("cgbench::delta_rule", mutates_args=())
def delta_rule(
    mixed: Tensor,
    rate: Tensor,
    time_step: Tensor,
    layer_number: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    activation: str,
    a_log: Tensor,
    dt_bias: Tensor,
    num_key_heads: int,
    num_heads: int,
    key_size: int,
    value_size: int,
) -> Tensor:
    """``RecurrentCall.delta_rule`` of the call that is under way, from the fields of ``DeltaRows``
    and ``DeltaNet``; ``layer_number`` as in ``attend``."""
    sizes = num_key_heads, num_heads, key_size, value_size
    net = DeltaNet(conv_weight, conv_bias, activation, a_log, dt_bias, *sizes)
    rows = DeltaRows(net, mixed, rate, time_step)
    return _under_way[-1].delta_rule(int(layer_number), rows).contiguous()


@delta_rule.register_fake
def _(mixed: Tensor, rate: Tensor, *rest: Any) -> Tensor:
    value_size: int = rest[-1]
    return mixed.new_empty(*rate.shape, value_size)


class OperatorCall:
    """The call that a compiler traces: each layer's attention or recurrence is one operator."""

    def attend(self, layer_idx: Tensor, qkv: AttentionInput) -> Tensor:
        """As ``AttentionCall.attend``, but for the number of the layer, a tensor."""
        out: Tensor = attend(
            qkv.query, qkv.key, qkv.value, layer_idx, qkv.scaling, qkv.sliding_window
        )
        return out

    def delta_rule(self, layer_idx: Tensor, rows: DeltaRows) -> Tensor:
        """As ``RecurrentCall.delta_rule``, but for the number of the layer, a tensor."""
        net = rows.net
        out: Tensor = delta_rule(
            rows.mixed,
            rows.rate,
            rows.time_step,
            layer_idx,
            net.conv_weight,
            net.conv_bias,
            net.activation,
            net.a_log,
            net.dt_bias,
            net.num_key_heads,
            net.num_heads,
            net.key_size,
            net.value_size,
        )
        return out


@torch.library.custom_op("cgbench::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``; of few rows of half precision on CUDA by the kernel made for them."""
    streamed = _streamed(x, weight, bias)
    return F.linear(x, weight, bias) if streamed is None else streamed


def _streamed(x: Tensor, weight: Tensor, bias: Tensor | None, **end: Any) -> Tensor | None:
    """``triton_linear.linear``, or None where that does not take these."""
    if x.is_cuda:
        # Imported here, for triton is there only beside a CUDA build of torch.
        from cgbench.kernels import triton_linear

        if triton_linear.can_stream(x, weight):
            return triton_linear.linear(x, weight, bias, **end)
    return None


@linear.register_fake
def _like_product(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("cgbench::gated_linear", mutates_args=())
def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``silu(gate) * up`` of the two halves of ``linear``. Rounded after each, as apart."""
    streamed = _streamed(x, weight, bias, is_gated=True)
    if streamed is not None:
        return streamed
    product = F.linear(x, weight, bias)
    if product.is_cuda:
        from cgbench.kernels import triton_gate

        return triton_gate.gated(product)
    gate, up = product.chunk(2, dim=-1)
    return F.silu(gate) * up


@gated_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


@torch.library.custom_op("cgbench::linear_add", mutates_args=())
def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """``residual + linear``. Rounded after each, as apart."""
    streamed = _streamed(x, weight, bias, residual=residual)
    return residual + F.linear(x, weight, bias) if streamed is None else streamed


linear_add.register_fake(_like_product)


@torch.library.custom_op("cgbench::rotated_linear", mutates_args=())
def rotated_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, cos: Tensor, sin: Tensor, num_rotated: int
) -> Tensor:
    """``linear`` of ``x [B, S, K]``, whose first ``num_rotated`` columns are then rotated as heads
    by ``cos`` and ``sin [B, S, D]``, halves against each other. Rounded after each operation on a
    CPU, as apart, and after the product and at the end on CUDA."""
    cos, sin = (each.expand(*x.shape[:-1], -1).contiguous() for each in (cos, sin))
    if x.is_cuda:
        from cgbench.kernels import triton_rotary

        rotary = triton_rotary.Rotary(cos, sin, num_rotated)
        streamed = _streamed(x, weight, bias, rotary=rotary)
        if streamed is not None:
            return streamed
        return triton_rotary.rotate(F.linear(x, weight, bias), rotary)
    product = F.linear(x, weight, bias)
    heads = product[..., :num_rotated].unflatten(-1, (-1, cos.shape[-1]))
    low, high = heads.chunk(2, dim=-1)
    across = torch.cat((-high, low), dim=-1)
    heads.copy_(heads * cos.unsqueeze(2) + across * sin.unsqueeze(2))
    return product


rotated_linear.register_fake(_like_product)


@torch.library.custom_op("cgbench::norm", mutates_args=())
def norm(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """The root-mean-square norm of ``x [..., K]`` by ``weight + offset``."""
    if x.is_cuda:
        from cgbench.kernels import triton_norm

        return triton_norm.norm(x, triton_norm.Norm(weight, epsilon, offset))
    return normed(x, weight, epsilon, offset)


@norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("cgbench::add_norm", mutates_args=())
def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, epsilon: float, offset: float
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``norm`` of that."""
    if x.is_cuda:
        from cgbench.kernels import triton_norm

        return triton_norm.add_norm(x, residual, triton_norm.Norm(weight, epsilon, offset))
    total = x + residual
    return total, normed(total, weight, epsilon, offset)


@add_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


ATTEND = torch.ops.cgbench.attend.default
LINEAR = torch.ops.cgbench.linear.default
GATED_LINEAR = torch.ops.cgbench.gated_linear.default
LINEAR_ADD = torch.ops.cgbench.linear_add.default
ROTATED_LINEAR = torch.ops.cgbench.rotated_linear.default
NORM = torch.ops.cgbench.norm.default
ADD_NORM = torch.ops.cgbench.add_norm.default
"""As they stand in a traced graph."""


@torch.library.custom_op("cgbench::summed_linear", mutates_args=())
def summed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``SummedLinear``: the ranks' products summed, then the bias."""
    out = sum_over_ranks(linear(x, weight, None))
    return out if bias is None else out + bias


summed_linear.register_fake(_like_product)


@torch.library.custom_op("cgbench::summed", mutates_args=())
def summed(partial: Tensor) -> Tensor:
    """``sum_over_ranks``, and ``partial`` stays as it was."""
    return sum_over_ranks(partial.clone())


@summed.register_fake
def _(partial: Tensor) -> Tensor:
    return torch.empty_like(partial)


class OperatorLinear(nn.Linear):
    """A linear layer that is one operator."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias)
        return out


class OperatorSummedLinear(SummedLinear):
    """A linear layer divided by input that is one operator with its sum over the ranks."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = summed_linear(x, self.weight, self.bias)
        return out


class OperatorVocabLinear(VocabLinear):
    """An lm_head divided by vocabulary whose part is one operator."""

    def part(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias)
        return out


_OPERATOR_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: OperatorLinear,
    SummedLinear: OperatorSummedLinear,
    VocabLinear: OperatorVocabLinear,
}


def use_linear_operator(module: nn.Module) -> None:
    """Make every linear layer in ``module`` one operator, and every sum over the ranks, in place;
    weights stay where they are."""
    for part in module.modules():
        if type(part) in _OPERATOR_CLASSES:
            part.__class__ = _OPERATOR_CLASSES[type(part)]
        elif isinstance(part, PackedFirst):
            part.linear = linear
        for hook in part._forward_hooks.values():
            if isinstance(hook, SumOutput):
                hook.sum = summed
