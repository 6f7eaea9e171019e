"""Hand the state of transformers' linear-attention layers to an object that keeps it.

A gated delta net carries two states over the tokens. One is the newest inputs of a short
convolution. The other is a matrix per head that decays and is corrected by each token.
``hook_linear_layers`` makes a layer compute everything else with its own modules. For what depends
on earlier tokens the layer asks the forward's ``attention_call``. If that is no ``RecurrentCall``,
the layer runs as in transformers.
"""

from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cgbench.kernels.delta_rule import DeltaNet, DeltaRows, StateShape

LINEAR_ATTENTION = "linear_attention"
GATED_DELTA_TYPES = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
"""These text models have gated delta nets as linear attention, which are hooked here."""


class RecurrentCall(Protocol):
    """A ``RecurrentCall`` computes the part of linear attention that depends on earlier tokens.

    These are the tokens before those of the forward.
    """

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """Return what the rows read from the state of layer ``layer_idx``: ``[B, S, heads, Dv]``.

        The rows are first convolved with those before them. Each reads after its own update.
        """
        ...


class RecurrentProbe:
    """A ``RecurrentProbe`` is a ``RecurrentCall`` that computes nothing and records each layer's
    state shape."""

    def __init__(self) -> None:
        self.state_shapes: dict[int, StateShape] = {}
        """The shape of each recurrent layer's state, by layer_idx."""

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        shape = self.state_shapes[layer_idx] = rows.net.state_shape
        return rows.mixed.new_zeros(*rows.rate.shape, shape.value_size)


def hook_linear_layers(backbone: nn.Module) -> None:
    """Route the state of every gated delta net in ``backbone`` through its forward's call."""
    for _, net in delta_nets(backbone):
        if not hasattr(net, "plain_class"):
            kind: Any = type(net)
            net.__class__ = _hooked_class(kind)


def delta_nets(module: nn.Module) -> list[tuple[str, Any]]:
    """Return every gated delta net in ``module``, with its name there."""
    return [each for each in module.named_modules() if each[0].endswith("linear_attn")]


@cache
def _hooked_class(plain: type[nn.Module]) -> type[nn.Module]:
    """Return ``plain`` with its state behind the call.

    It is one class for all layers, and not a function set on each. A compiler would take each such
    layer for another.
    """

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
    # A compiler is shown the number as a tensor (see compile/operators.py).
    layer_idx = net.layer_number if torch.compiler.is_compiling() else net.layer_idx
    out = attention_call.delta_rule(layer_idx, rows)
    # The norm takes heads one by one, as rows.
    normed = net.norm(out.reshape(-1, net.head_v_dim), gate.reshape(-1, net.head_v_dim))
    result: Tensor = net.out_proj(normed.reshape(batch, length, -1))
    return result


def _project(net: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the layer's projections of ``hidden_states``.

    They are the convolution's input ``[B, S, C]``, the output's gate, and each head's beta and time
    step before their activations. Qwen3-Next keeps two packed projections, Qwen3.5 four plain ones.
    """
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
