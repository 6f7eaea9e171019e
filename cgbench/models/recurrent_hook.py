"""The one door between transformers' linear-attention layers and whoever keeps their state.

A gated delta net carries two states over the tokens: the newest inputs of a short convolution,
and per head a matrix that decays and is corrected by each token. ``hook_linear_layers`` has a
layer compute everything else with its own modules, and ask the forward's ``attention_call`` for
what depends on earlier tokens. A call that is no ``RecurrentCall``, or none at all, leaves the
layer transformers' own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of a request's state; ``dtype`` is the model's."""
        matrix = self.num_heads * self.key_size * self.value_size * torch.float32.itemsize
        return matrix + self.conv_rows * self.conv_channels * dtype.itemsize

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes kept of each verified row, from which the state after it is made."""
        matrix = self.num_heads * (self.key_size + self.value_size + 1) * torch.float32.itemsize
        return matrix + self.conv_channels * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows for the gated delta rule, ``[B, S, heads, ...]``: ``query`` and ``key`` not normed yet,
    ``log_decay`` at most 0, ``beta`` how much of a row enters the state."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor


class RecurrentCall(Protocol):
    """Computes what of a linear-attention layer depends on the tokens before the forward's."""

    def conv_inputs(self, layer_idx: int, rows: Tensor, num_before: int) -> Tensor:
        """``rows [B, S, C]`` behind the ``num_before`` rows before them: ``[B, before + S, C]``;
        zeros before a request's first."""
        ...

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """What the rows read from the state, each after its own update: ``[B, S, heads, Dv]``."""
        ...


class RecurrentProbe:
    """A ``RecurrentCall`` that computes nothing and records each layer's state shape."""

    def __init__(self) -> None:
        self.state_shapes: dict[int, StateShape] = {}
        """By layer_idx."""
        self._conv: tuple[int, int] = (0, 0)

    def conv_inputs(self, layer_idx: int, rows: Tensor, num_before: int) -> Tensor:
        self._conv = rows.shape[-1], num_before
        return F.pad(rows, (0, 0, num_before, 0))

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        heads, key_size = rows.key.shape[2:]
        self.state_shapes[layer_idx] = StateShape(heads, key_size, rows.value.shape[3], *self._conv)
        return torch.zeros_like(rows.value)


def hook_linear_layers(backbone: nn.Module) -> None:
    """Route the state of every gated delta net in ``backbone`` through its forward's call."""
    for layer in backbone.layers:  # type: ignore[union-attr]
        net = getattr(layer, "linear_attn", None)
        if net is not None:
            net.forward = partial(_forward, net, net.forward)


def _forward(
    net: Any,
    plain: Callable[..., Tensor],
    hidden_states: Tensor,
    *args: Any,
    attention_call: Any = None,
    **kwargs: Any,
) -> Tensor:
    if not hasattr(attention_call, "delta_rule"):
        return plain(hidden_states, *args, **kwargs)
    batch, length, _ = hidden_states.shape
    mixed, gate, rate, time_step = _project(net, hidden_states)
    num_before = net.conv_kernel_size - 1
    rows = attention_call.conv_inputs(net.layer_idx, mixed, num_before)
    mixed = _convolve(net, rows)[:, num_before:]
    out = attention_call.delta_rule(net.layer_idx, _delta_rows(net, mixed, rate, time_step))
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


def _convolve(net: Any, rows: Tensor) -> Tensor:
    """The layer's causal convolution and its activation over ``rows [B, S, C]``."""
    # Imported here, for only these models need it.
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    weight, bias = net.conv1d.weight.squeeze(1), net.conv1d.bias
    out: Tensor = causal_conv1d_fn(rows.transpose(1, 2), weight, bias, activation=net.activation)
    return out.transpose(1, 2)


def _delta_rows(net: Any, mixed: Tensor, rate: Tensor, time_step: Tensor) -> DeltaRows:
    """``mixed [B, S, C]`` cut into heads; every key head serves a group of value heads."""
    query, key, value = mixed.split([net.key_dim, net.key_dim, net.value_dim], dim=-1)
    group = net.num_v_heads // net.num_k_heads
    query, key = (
        each.unflatten(-1, (net.num_k_heads, net.head_k_dim)).repeat_interleave(group, dim=2)
        for each in (query, key)
    )
    return DeltaRows(
        query=query,
        key=key,
        value=value.unflatten(-1, (net.num_v_heads, net.head_v_dim)),
        # In float32: in half precision the exponent of A_log may overflow.
        log_decay=-net.A_log.float().exp() * F.softplus(time_step.float() + net.dt_bias),
        beta=rate.sigmoid(),
    )


def chunked_delta_rule(rows: DeltaRows) -> tuple[Tensor, Tensor]:
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
