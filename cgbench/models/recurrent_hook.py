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

from cgbench.kernels.gdn.delta_net import DeltaNet, DeltaRows, StateShape

LINEAR_ATTENTION = "linear_attention"
GATED_DELTA_TYPES = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
"""These text models have gated delta nets as linear attention, which are hooked here."""


class RecurrentCall(Protocol):
    """A ``RecurrentCall`` computes the part of linear attention that depends on earlier tokens.

    These are the tokens before those of the forward.
    """

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """Return what the rows read from the state of layer ``layer_idx``: ``[B, S, heads, Dv]``.

        The rows are first convolved with those before them. Each reads after its own update. What
        it reads is normed and gated.
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
        return rows.value.new_zeros(*rows.num_tokens, shape.num_heads, shape.value_size)


def hook_linear_layers(backbone: nn.Module) -> None:
    """Route the state of every gated delta net in ``backbone`` through its forward's call."""
    for _, net in delta_nets(backbone):
        if not hasattr(net, "plain_class"):
            kind: Any = type(net)
            net.__class__ = _hooked_class(kind)
            # A tap's channels lie side by side, as the kernel reads them.
            taps = net.conv1d.weight.data.transpose(0, 2).contiguous()
            net.conv1d.weight.data = taps.transpose(0, 2)


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
    rows = DeltaRows(_delta_net(net), *_project(net, hidden_states))
    # A compiler is shown the number as a tensor (see compile/operators.py).
    layer_idx = net.layer_number if torch.compiler.is_compiling() else net.layer_idx
    normed = attention_call.delta_rule(layer_idx, rows)
    result: Tensor = net.out_proj(normed.reshape(batch, length, -1))
    return result


def _project(net: Any, hidden_states: Tensor) -> list[Tensor]:
    """Return the layer's projections of ``hidden_states``, as ``DeltaRows`` has them.

    Qwen3-Next keeps two packed projections, whose columns go by key heads. Qwen3.5 keeps four, of
    which the first holds all queries, then all keys, then all values.
    """
    group = net.num_v_heads // net.num_k_heads
    key_size, values = net.head_k_dim, group * net.head_v_dim
    if hasattr(net, "in_proj_qkvz"):
        of_heads = _by_key_head(net, net.in_proj_qkvz(hidden_states), net.in_proj_ba(hidden_states))
        cuts = (key_size, key_size, values, values), (group, group)
        return [
            part
            for each, cut in zip(of_heads, cuts, strict=True)
            for part in each.split(cut, dim=-1)
        ]
    sizes = [net.num_k_heads * size for size in (key_size, key_size, values)]
    return _by_key_head(
        net,
        *net.in_proj_qkv(hidden_states).split(sizes, dim=-1),
        net.in_proj_z(hidden_states),
        net.in_proj_b(hidden_states),
        net.in_proj_a(hidden_states),
    )


def _by_key_head(net: Any, *projected: Tensor) -> list[Tensor]:
    """Cut the columns of each into what belongs to the key heads, ``[B, S, num_k_heads, ...]``."""
    return [each.unflatten(-1, (net.num_k_heads, -1)) for each in projected]


def _delta_net(net: Any) -> DeltaNet:
    return DeltaNet(
        conv_weight=net.conv1d.weight.squeeze(1),
        conv_bias=net.conv1d.bias,
        activation=net.activation,
        a_log=net.A_log,
        dt_bias=net.dt_bias,
        norm_weight=net.norm.weight,
        norm_epsilon=net.norm.variance_epsilon,
        num_key_heads=net.num_k_heads,
        num_heads=net.num_v_heads,
        key_size=net.head_k_dim,
        value_size=net.head_v_dim,
    )
