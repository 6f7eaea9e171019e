"""Make routers and experts operators, if their modules compute what the kernels do."""

import functools
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.compile.operators import under_way_call
from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.moe.expert_products import Choice, Experts, ExpertScales, apply_by_torch
from cgbench.kernels.moe.router_rule import RouterRule, route_by_torch
from cgbench.models.quantised.scaled_modules import scales_of
from cgbench.models.router_rules import (
    RULE_VALUES,
    correction_bias,
    is_plain_mixture,
    mixture_blocks,
    ruled_routers,
)


@torch.library.custom_op("cgbench::route", mutates_args=())
def route(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    top_k: int,
    is_sigmoid: bool,
    wide_logits: bool,
    num_groups: int,
    top_groups: int,
    renormalises: bool,
    least_sum: float,
    added_to_sum: float,
    scaling: float,
    wide_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Compute ``route_by_torch``, from the fields of ``RouterRule``."""
    rule = RouterRule(
        top_k,
        is_sigmoid,
        wide_logits,
        num_groups,
        top_groups,
        renormalises,
        least_sum,
        added_to_sum,
        scaling,
        wide_weights,
    )
    if runs_kernels(x.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.moe import triton_route

        if triton_route.can_route(weight, rule):
            return triton_route.route(x, weight, bias, rule)
    weights, chosen = route_by_torch(x, weight, bias, rule)
    return weights.contiguous(), chosen.contiguous()


@route.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, top_k: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    wide_weights: bool = rest[-1]
    kind = torch.float32 if wide_weights else x.dtype
    weights = x.new_empty(x.shape[0], top_k, dtype=kind)
    return weights, torch.empty_like(weights, dtype=torch.long)


@torch.library.custom_op("cgbench::apply_experts", mutates_args=())
def apply_experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    chosen: Tensor,
    weights: Tensor,
    gate_up_scale: Tensor | None,
    gate_up_row_blocks: Tensor | None,
    down_scale: Tensor | None,
    down_row_blocks: Tensor | None,
    is_w8a8: bool,
    residual: Tensor | None,
) -> Tensor:
    """Compute ``apply_by_torch`` of tokens ``x [T, H]``, except for padding.

    The call that is under way reports the padding.
    """
    experts = Experts(
        gate_up,
        down,
        _scales(gate_up_scale, gate_up_row_blocks),
        _scales(down_scale, down_row_blocks),
        is_w8a8,
    )
    choice = Choice(chosen.contiguous(), weights.contiguous(), under_way_call().padding)
    if runs_kernels(x.device):
        from cgbench.kernels.moe import triton_experts

        if not triton_experts.can_apply(experts):
            experts = experts.values(x.dtype)
        return triton_experts.apply(experts, x, choice, residual)
    return apply_by_torch(experts, x, choice, residual)


def _scales(scale: Tensor | None, row_blocks: Tensor | None) -> ExpertScales | None:
    return None if scale is None or row_blocks is None else ExpertScales(scale, row_blocks)


@apply_experts.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""These are transformers' names of experts' weights."""

APPLY_EXPERTS = torch.ops.cgbench.apply_experts.default
"""This is the operator as it stands in a traced graph."""


@functools.cache
def _operator_router(kind: Any) -> type[nn.Module]:
    """Return a subclass of router ``kind`` that is one operator in a compiled form."""

    class OperatorRouter(kind):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Any:
            if not torch.compiler.is_compiling():
                return super().forward(hidden_states)
            x = hidden_states.reshape(-1, hidden_states.shape[-1])
            weights, chosen = route(
                x, self.weight, correction_bias(self), *getattr(self, RULE_VALUES)
            )
            # Nobody asks a decode step for logits of the router.
            return None, weights, chosen

    return OperatorRouter


@functools.cache
def _operator_experts(kind: Any) -> type[nn.Module]:
    """Return a subclass of experts ``kind`` that is one operator in a compiled form."""

    class OperatorExperts(kind):  # type: ignore[misc]
        applies_experts = True

        def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
            if not torch.compiler.is_compiling():
                return super().forward(hidden, top_k_index, top_k_weights)
            weights = self.gate_up_proj, self.down_proj
            nothing = None, None
            scales = *(scales_of(self, GATE_UP) or nothing), *(scales_of(self, DOWN) or nothing)
            is_w8a8 = getattr(self, "is_w8a8", False)
            choice = top_k_index, top_k_weights
            return apply_experts(hidden, *weights, *choice, *scales, is_w8a8, None)

    return OperatorExperts


def use_mixture_operators(module: nn.Module) -> int:
    """Make every suitable mixture in ``module`` two operators, router and experts, in place.

    Returns how many mixtures' experts are operators. Prefill runs as before.
    """
    found = 0
    for block, experts in mixture_blocks(module):
        if not is_plain_mixture(experts):
            continue
        kind: Any = type(experts)
        experts.__class__ = _operator_experts(kind)
        found += 1
        for part, rule in ruled_routers(block):
            kind = type(part)
            part.__class__ = _operator_router(kind)
            setattr(part, RULE_VALUES, astuple(rule))
    return found
