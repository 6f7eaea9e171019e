"""The one door between transformers' linear-attention layers and whoever keeps their state.

A gated delta net carries two states over the tokens: the newest inputs of a short convolution,
and per head a matrix that decays and is corrected by each token. ``hook_linear_layers`` has a
layer compute everything else with its own modules, and ask the forward's ``attention_call`` for
what depends on earlier tokens. A call that is no ``RecurrentCall``, or none at all, leaves the
layer transformers' own.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR_ATTENTION = "linear_attention"
GATED_DELTA_TYPES = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
"""Text models whose linear attention is the gated delta net that is hooked here."""


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one linear-attention layer keeps of a request, however long it is.

    A ``[num_heads, key_size, value_size]`` matrix, float32 as transformers keeps it, and the
    ``conv_rows`` newest of the convolution's inputs, of ``conv_channels`` each.
    """

    num_heads: int
    key_size: int
    value_size: int
    conv_channels: int
    conv_rows: int

    @property
    def matrix_elements(self) -> int:
        """Numbers in the matrices of all heads."""
        return self.num_heads * self.key_size * self.value_size

    def num_bytes(self, itemsize: int) -> int:
        """Bytes of a request's state; ``itemsize`` is of the model's dtype."""
        matrix = self.matrix_elements * torch.float32.itemsize
        return matrix + self.conv_rows * self.conv_channels * itemsize

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes kept of each verified row, from which the state after it is made."""
        matrix = self.num_heads * (self.key_size + self.value_size + 1) * torch.float32.itemsize
        return matrix + self.conv_channels * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Sizes and weights of a gated delta net that its recurrence takes.

    ``conv_weight [C, conv_rows + 1]`` and ``conv_bias [C]``, where C holds the query and key of
    ``num_key_heads`` and the value of ``num_heads``; ``a_log [num_heads]`` and
    ``dt_bias [num_heads]``, of the decay. Each key head serves a group of value heads.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    activation: str
    a_log: Tensor
    dt_bias: Tensor
    num_key_heads: int
    num_heads: int
    key_size: int
    value_size: int

    @property
    def state_shape(self) -> StateShape:
        channels, taps = self.conv_weight.shape
        return StateShape(self.num_heads, self.key_size, self.value_size, channels, taps - 1)


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows as a gated delta net projects them: ``mixed [B, S, C]``, the convolution's input, and
    ``rate`` and ``time_step [B, S, num_heads]``, from which beta and the decay are made."""

    net: DeltaNet
    mixed: Tensor
    rate: Tensor
    time_step: Tensor


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows for the gated delta rule, ``[B, S, heads, ...]``: ``query`` and ``key`` not normed yet,
    ``log_decay`` at most 0, ``beta`` how much of a row enters the state."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor


class RecurrentCall(Protocol):
    """Computes what of a linear-attention layer depends on the tokens before the forward's."""

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """What the rows, convolved with those before them, read from the state, each after its own
        update: ``[B, S, heads, Dv]``."""
        ...


class RecurrentProbe:
    """A ``RecurrentCall`` that computes nothing and records each layer's state shape."""

    def __init__(self) -> None:
        self.state_shapes: dict[int, StateShape] = {}
        """By layer_idx."""

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        shape = self.state_shapes[layer_idx] = rows.net.state_shape
        return rows.mixed.new_zeros(*rows.rate.shape, shape.value_size)


def hook_linear_layers(backbone: nn.Module) -> None:
    """Route the state of every gated delta net in ``backbone`` through its forward's call."""
    for layer in backbone.layers:  # type: ignore[union-attr]
        net = getattr(layer, "linear_attn", None)
        if net is not None and not hasattr(net, "plain_class"):
            net.__class__ = _hooked_class(type(net))  # type: ignore[arg-type]


@cache
def _hooked_class(plain: type[nn.Module]) -> type[nn.Module]:
    """``plain`` with its state behind the call. One class for all layers, not a function set on
    each: a compiler would take each such layer for another."""

    class Hooked(plain):  # type: ignore[valid-type, misc]
        plain_class = plain

        def forward(
            self, hidden_states: Tensor, *args: Any, attention_call: Any = None, **kwargs: Any
        ) -> Tensor:
            if hasattr(attention_call, "delta_rule"):
                return _forward(self, hidden_states, attention_call)
            result: Tensor = super().forward(hidden_states, *args, **kwargs)
            return result

    Hooked.__name__ = Hooked.__qualname__ = plain.__name__
    return Hooked


def _forward(net: Any, hidden_states: Tensor, attention_call: Any) -> Tensor:
    batch, length, _ = hidden_states.shape
    mixed, gate, rate, time_step = _project(net, hidden_states)
    rows = DeltaRows(_delta_net(net), mixed, rate, time_step)
    # A compiler is shown the number as a tensor: see engine/operators.py.
    layer_idx = net.layer_number if torch.compiler.is_compiling() else net.layer_idx
    out = attention_call.delta_rule(layer_idx, rows)
    # The norm takes heads one by one, as rows.
    normed = net.norm(out.reshape(-1, net.head_v_dim), gate.reshape(-1, net.head_v_dim))
    result: Tensor = net.out_proj(normed.reshape(batch, length, -1))
    return result


def _project(net: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The convolution's input ``[B, S, C]``, the output's gate, and each head's beta and time step
    before their activations. Qwen3-Next keeps two packed projections, Qwen3.5 four plain ones."""
    if hasattr(net, "in_proj_qkvz"):
        *qkv, gate, rate, time_step = net.fix_query_key_value_ordering(
            net.in_proj_qkvz(hidden_states), net.in_proj_ba(hidden_states)
        )
        return torch.cat([each.flatten(2) for each in qkv], dim=-1), gate, rate, time_step
    return (
        net.in_proj_qkv(hidden_states),
        net.in_proj_z(hidden_states),
        net.in_proj_b(hidden_states),
        net.in_proj_a(hidden_states),
    )


def _delta_net(net: Any) -> DeltaNet:
    return DeltaNet(
        conv_weight=net.conv1d.weight.squeeze(1),
        conv_bias=net.conv1d.bias,
        activation=net.activation,
        a_log=net.A_log,
        dt_bias=net.dt_bias,
        num_key_heads=net.num_k_heads,
        num_heads=net.num_v_heads,
        key_size=net.head_k_dim,
        value_size=net.head_v_dim,
    )


def head_rows(rows: DeltaRows, inputs: Tensor) -> HeadRows:
    """``rows`` convolved and cut into heads; ``inputs [B, before + S, C]`` are ``rows.mixed``
    behind what the convolution sees before them."""
    net = rows.net
    mixed = _convolve(net, inputs)[:, inputs.shape[1] - rows.mixed.shape[1] :]
    key_dim = net.num_key_heads * net.key_size
    query, key, value = mixed.split([key_dim, key_dim, net.num_heads * net.value_size], dim=-1)
    group = net.num_heads // net.num_key_heads
    query, key = (
        each.unflatten(-1, (net.num_key_heads, net.key_size)).repeat_interleave(group, dim=2)
        for each in (query, key)
    )
    return HeadRows(
        query=query,
        key=key,
        value=value.unflatten(-1, (net.num_heads, net.value_size)),
        # In float32: in half precision the exponent of A_log may overflow.
        log_decay=-net.a_log.float().exp() * F.softplus(rows.time_step.float() + net.dt_bias),
        beta=rows.rate.sigmoid(),
    )


def _convolve(net: DeltaNet, rows: Tensor) -> Tensor:
    """The causal convolution and its activation over ``rows [B, S, C]``."""
    # Imported here, for only these models need it.
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    out: Tensor = causal_conv1d_fn(
        rows.transpose(1, 2), net.conv_weight, net.conv_bias, activation=net.activation
    )
    return out.transpose(1, 2)


def chunked_delta_rule(rows: HeadRows) -> tuple[Tensor, Tensor]:
    """transformers' own gated delta rule over whole sequences from an empty state: the output
    ``[B, S, heads, Dv]`` and the last state ``[B, heads, Dk, Dv]`` in float32."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    out, state = torch_chunk_gated_delta_rule(
        rows.query,
        rows.key,
        rows.value,
        g=rows.log_decay,
        beta=rows.beta,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    assert state is not None
    return out, state
