"""Hide attention, recurrences, products and sums over ranks from a compiler as operators.

A compiler does not look into an operator. When FlexAttention was inlined, it has been wrong under
``torch.compile`` (relative error 1.35, where rounding is 0.06). A KV write that the compiler sees
makes it copy the cache at every layer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cgbench.kernels import linear as products
from cgbench.kernels import norm as norms
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.gdn.delta_net import DeltaNet, DeltaRows
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_rows import PairRotary
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.kernels.moe.expert_products import Padding
from cgbench.models.attention_hook import AttentionCall
from cgbench.models.division.shards import (
    ScaledSummedLinear,
    ScaledVocabLinear,
    SummedLinear,
    SumOutput,
    VocabLinear,
)
from cgbench.models.latent.latent_hook import LatentCall
from cgbench.models.projections import PackedFirst
from cgbench.models.quantised.scaled_modules import ScaledLinear, scaling_of
from cgbench.models.recurrent_hook import RecurrentCall
from cgbench.parallel.collectives import sum_over_ranks


class LayerCall(AttentionCall, LatentCall, RecurrentCall, Protocol):
    """A layer call answers attention, over latents too, and recurrence, as a decode step's does."""

    @property
    def padding(self) -> Padding:
        """Return which tokens are padding."""
        ...


_under_way: list[LayerCall] = []


@contextmanager
def under_way(call: LayerCall) -> Iterator[None]:
    """Let ``call`` answer the operators of attention and recurrence that run inside the context."""
    _under_way.append(call)
    try:
        yield
    finally:
        _under_way.pop()


def under_way_call() -> LayerCall:
    """Return the call that answers the operators now."""
    return _under_way[-1]


@torch.library.custom_op("cgbench::attend", mutates_args=())
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer_number: Tensor,
    scaling: float,
    sliding_window: int | None,
    sinks: Tensor | None,
    is_causal: bool = True,
) -> Tensor:
    """Compute ``AttentionCall.attend`` of the call that is under way.

    ``layer_number`` is a tensor on the host. A plain number would be compiled in, and would make
    every layer another form.
    """
    qkv = AttentionInput(query, key, value, scaling, sliding_window, sinks, is_causal)
    return _under_way[-1].attend(int(layer_number), qkv).contiguous()


@attend.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer_number: Tensor,
    scaling: float,
    sliding_window: int | None,
    sinks: Tensor | None,
    is_causal: bool = True,
) -> Tensor:
    batch, num_heads, query_len, _ = query.shape
    return query.new_empty(batch, query_len, num_heads, value.shape[3])


@torch.library.custom_op("cgbench::delta_rule", mutates_args=())
def delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    rate: Tensor,
    time_step: Tensor,
    layer_number: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    activation: str,
    a_log: Tensor,
    dt_bias: Tensor,
    norm_weight: Tensor,
    norm_epsilon: float,
    num_key_heads: int,
    num_heads: int,
    key_size: int,
    value_size: int,
) -> Tensor:
    """Compute ``RecurrentCall.delta_rule`` of the call that is under way.

    It takes the fields of ``DeltaRows`` and ``DeltaNet``. ``layer_number`` is as in ``attend``.
    """
    weights = conv_weight, conv_bias, activation, a_log, dt_bias, norm_weight, norm_epsilon
    net = DeltaNet(*weights, num_key_heads, num_heads, key_size, value_size)
    rows = DeltaRows(net, query, key, value, gate, rate, time_step)
    return _under_way[-1].delta_rule(int(layer_number), rows).contiguous()


@delta_rule.register_fake
def _(query: Tensor, *rest: Any) -> Tensor:
    num_heads, _, value_size = rest[-3:]
    return query.new_empty(*query.shape[:2], num_heads, value_size)


@torch.library.custom_op("cgbench::attend_latent", mutates_args=())
def attend_latent(
    query: Tensor,
    latent: Tensor,
    weight: Tensor,
    layer_number: Tensor,
    key_size: int,
    value_size: int,
    scale: Tensor | None,
    row_blocks: Tensor | None,
    scaling: float,
    sliding_window: int | None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """``LatentCall.attend_latent`` of the call that is under way, from the fields of
    ``LatentInput`` and ``LatentWeights``. ``layer_number`` as in ``attend``. ``cos`` and ``sin``
    rotate a query that is not rotated yet."""
    weights = LatentWeights(weight, key_size, value_size, scale, row_blocks)
    pairs = None if cos is None or sin is None else PairRotary(cos, sin)
    new = LatentInput(query, latent, weights, scaling, sliding_window, pairs)
    return _under_way[-1].attend_latent(int(layer_number), new).contiguous()


@attend_latent.register_fake
def _(query: Tensor, *rest: Any) -> Tensor:
    batch, num_heads, query_len, _ = query.shape
    value_size: int = rest[4]
    return query.new_empty(batch, query_len, num_heads, value_size)


class OperatorCall:
    """A compiler traces this call, so that a layer's attention or recurrence is one operator."""

    def __init__(self, *, keeps_latents: bool = False) -> None:
        """``keeps_latents``: as the decode step's own call has it."""
        self.keeps_latents = keeps_latents

    def attend(self, layer_idx: Tensor, qkv: AttentionInput) -> Tensor:
        """Compute ``AttentionCall.attend``. The number of the layer is a tensor."""
        out: Tensor = attend(
            *(qkv.query, qkv.key, qkv.value, layer_idx),
            *(qkv.scaling, qkv.sliding_window, qkv.sinks, qkv.is_causal),
        )
        return out

    def attend_latent(self, layer_idx: Tensor, new: LatentInput) -> Tensor:
        """Compute ``LatentCall.attend_latent``. The number of the layer is a tensor."""
        weights = new.weights
        out: Tensor = attend_latent(
            new.query,
            new.latent,
            weights.weight,
            layer_idx,
            weights.key_size,
            weights.value_size,
            weights.scale,
            weights.row_blocks,
            new.scaling,
            new.sliding_window,
            None,
            None,
        )
        return out

    def delta_rule(self, layer_idx: Tensor, rows: DeltaRows) -> Tensor:
        """Compute ``RecurrentCall.delta_rule``. The number of the layer is a tensor."""
        net = rows.net
        out: Tensor = delta_rule(
            *(rows.query, rows.key, rows.value, rows.gate, rows.rate, rows.time_step),
            layer_idx,
            net.conv_weight,
            net.conv_bias,
            net.activation,
            net.a_log,
            net.dt_bias,
            net.norm_weight,
            net.norm_epsilon,
            net.num_key_heads,
            net.num_heads,
            net.key_size,
            net.value_size,
        )
        return out


linear = torch.library.custom_op("cgbench::linear", products.linear, mutates_args=())
gated_linear = torch.library.custom_op(
    "cgbench::gated_linear", products.gated_linear, mutates_args=()
)
linear_add = torch.library.custom_op("cgbench::linear_add", products.linear_add, mutates_args=())
rotated_linear = torch.library.custom_op(
    "cgbench::rotated_linear", products.rotated_linear, mutates_args=()
)
norm = torch.library.custom_op("cgbench::norm", norms.norm, mutates_args=())
add_norm = torch.library.custom_op("cgbench::add_norm", norms.add_norm, mutates_args=())
"""These six functions of ``cgbench.kernels`` are one operator each."""


@linear.register_fake
@linear_add.register_fake
@rotated_linear.register_fake
def _like_product(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@gated_linear.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2)


@norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    return x.new_empty(x.shape)


@add_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


ATTEND = torch.ops.cgbench.attend.default
ATTEND_LATENT = torch.ops.cgbench.attend_latent.default
LINEAR = torch.ops.cgbench.linear.default
GATED_LINEAR = torch.ops.cgbench.gated_linear.default
LINEAR_ADD = torch.ops.cgbench.linear_add.default
ROTATED_LINEAR = torch.ops.cgbench.rotated_linear.default
NORM = torch.ops.cgbench.norm.default
ADD_NORM = torch.ops.cgbench.add_norm.default
"""These are the operators as they stand in a traced graph."""


@torch.library.custom_op("cgbench::summed_linear", mutates_args=())
def summed_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    row_blocks: Tensor | None = None,
    is_w8a8: bool = False,
) -> Tensor:
    """Compute ``SummedLinear``: sum the ranks' products, then add the bias."""
    out = sum_over_ranks(linear(x, weight, None, scale, row_blocks, is_w8a8))
    return out if bias is None else out + bias


summed_linear.register_fake(_like_product)


@torch.library.custom_op("cgbench::summed", mutates_args=())
def summed(partial: Tensor) -> Tensor:
    """Compute ``sum_over_ranks``, and leave ``partial`` as it was."""
    return sum_over_ranks(partial.clone())


@summed.register_fake
def _(partial: Tensor) -> Tensor:
    return torch.empty_like(partial)


class OperatorLinear(nn.Linear):
    """This linear layer is one operator."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias)
        return out


class OperatorScaledLinear(ScaledLinear):
    """This linear layer of FP8 weights is one operator."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias, *scaling_of(self))
        return out


class OperatorScaledSummedLinear(ScaledSummedLinear):
    """This is an ``OperatorSummedLinear`` of FP8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = summed_linear(x, self.weight, self.bias, *scaling_of(self))
        return out


class OperatorScaledVocabLinear(ScaledVocabLinear):
    """This is an ``OperatorVocabLinear`` of FP8 weights."""

    def part(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias, *scaling_of(self))
        return out


class OperatorSummedLinear(SummedLinear):
    """This linear layer is divided by input. With its sum over the ranks it is one operator."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = summed_linear(x, self.weight, self.bias)
        return out


class OperatorVocabLinear(VocabLinear):
    """This lm_head is divided by vocabulary. One operator computes its rank's part."""

    def part(self, x: Tensor) -> Tensor:
        out: Tensor = linear(x, self.weight, self.bias)
        return out


_OPERATOR_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: OperatorLinear,
    SummedLinear: OperatorSummedLinear,
    VocabLinear: OperatorVocabLinear,
    ScaledLinear: OperatorScaledLinear,
    ScaledSummedLinear: OperatorScaledSummedLinear,
    ScaledVocabLinear: OperatorScaledVocabLinear,
}


def use_linear_operator(module: nn.Module) -> None:
    """Make every linear layer in ``module`` one operator, and every sum over the ranks, in place.

    Weights stay where they are.
    """
    for part in module.modules():
        if type(part) in _OPERATOR_CLASSES:
            part.__class__ = _OPERATOR_CLASSES[type(part)]
        elif isinstance(part, PackedFirst):
            part.linear = linear
        for hook in part._forward_hooks.values():
            if isinstance(hook, SumOutput):
                hook.sum = summed
