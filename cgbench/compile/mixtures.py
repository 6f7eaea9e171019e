"""Make routers and experts operators, if their modules compute what the kernels do."""

import functools
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.compile.operators import under_way_call
from cgbench.compile.shared_experts import (
    SharedTensors,
    as_scales,
    as_shared_expert,
    shared_parts,
    shared_tensors,
)
from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.moe.expert_products import Choice, Experts, apply_by_torch
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
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    shared_gate: Tensor | None,
    shared_gate_up_scale: Tensor | None,
    shared_gate_up_row_blocks: Tensor | None,
    shared_down_scale: Tensor | None,
    shared_down_row_blocks: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Compute ``apply_by_torch`` of tokens ``x [T, H]``, except for padding.

    The call that is under way reports the padding. Without ``shared_gate_up`` and ``shared_down``
    there is no shared expert.
    """
    of_gate_up = shared_gate_up_scale, shared_gate_up_row_blocks
    of_down = shared_down_scale, shared_down_row_blocks
    experts = Experts(
        gate_up,
        down,
        as_scales(gate_up_scale, gate_up_row_blocks),
        as_scales(down_scale, down_row_blocks),
        is_w8a8,
        as_shared_expert((shared_gate_up, shared_down, shared_gate, *of_gate_up, *of_down)),
    )
    choice = Choice(chosen.contiguous(), weights.contiguous(), under_way_call().padding)
    if runs_kernels(x.device):
        from cgbench.kernels.moe import triton_experts
        from cgbench.kernels.moe.expert_plan import can_apply

        if not can_apply(experts):
            experts = experts.values(x.dtype)
        return triton_experts.apply(experts, x, choice, residual)
    return apply_by_torch(experts, x, choice, residual)


@apply_experts.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


GATE_UP, DOWN = "gate_up_proj", "down_proj"
"""These are transformers' names of experts' weights."""

SHARED_PARTS = "shared_parts"
"""A block whose shared expert is in the operator holds the names of its parts so."""

NO_SHARED: SharedTensors = (None,) * 7
"""These are the operator's seven arguments of a shared expert, where there is none."""

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

        def forward(
            self,
            hidden: Tensor,
            top_k_index: Tensor,
            top_k_weights: Tensor,
            shared: SharedTensors = NO_SHARED,
        ) -> Any:
            """``shared``: a shared expert's tensors, which are there in a compiled form alone."""
            if not torch.compiler.is_compiling():
                return super().forward(hidden, top_k_index, top_k_weights)
            weights = self.gate_up_proj, self.down_proj
            nothing = None, None
            scales = *(scales_of(self, GATE_UP) or nothing), *(scales_of(self, DOWN) or nothing)
            is_w8a8 = getattr(self, "is_w8a8", False)
            choice = top_k_index, top_k_weights
            return apply_experts(hidden, *weights, *choice, *scales, is_w8a8, *shared, None)

    return OperatorExperts


@functools.cache
def _operator_block(kind: Any) -> type[nn.Module]:
    """Return a subclass of a mixture's block ``kind`` whose shared expert is in the operator."""

    class OperatorBlock(kind):  # type: ignore[misc]
        applies_shared = True

        def forward(self, hidden_states: Tensor) -> Any:
            if not torch.compiler.is_compiling():
                return super().forward(hidden_states)
            parts = getattr(self, SHARED_PARTS)
            x = hidden_states.reshape(-1, hidden_states.shape[-1])
            _, weights, chosen = getattr(self, parts.router)(x)
            shared = shared_tensors(self, parts)
            return self.experts(x, chosen, weights, shared=shared).view(hidden_states.shape)

    return OperatorBlock


def use_mixture_operators(module: nn.Module) -> int:
    """Make every suitable mixture in ``module`` two operators, router and experts, in place.

    The experts' operator takes in the shared expert, if it can. Returns how many mixtures'
    experts are operators. Prefill runs as before.
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
        parts = shared_parts(block)
        if parts is not None:
            kind = type(block)
            block.__class__ = _operator_block(kind)
            setattr(block, SHARED_PARTS, parts)
    return found
