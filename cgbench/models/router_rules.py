"""What a transformers router computes, as a ``RouterRule``, found by trying it.

transformers writes the same router under many class names, and models that share a name may differ.
So a rule is made of the module's attributes, and held against the module's own forward.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cgbench.kernels.moe.expert_products import Experts
from cgbench.kernels.moe.router_rule import RouterRule, route_by_torch

PROBES = 64
TOLERANCE = 1e-5


def correction_bias(router: nn.Module) -> Tensor | None:
    """What is added to the scores for the choice alone, ``[E]``, or None."""
    holder = getattr(router, "moe_statics", router)
    bias = getattr(holder, "e_score_correction_bias", None)
    return None if bias is None else bias.reshape(-1)


def router_rule(router: nn.Module) -> RouterRule | None:
    """The rule of ``router``, a module with ``weight [E, H]`` and ``top_k``; None where its forward
    does something else.

    Its own weights are not used: they may all be alike, and then every rule would fit.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in [*router.named_parameters(), *router.named_buffers()]
    }
    x = torch.randn(PROBES, tensors["weight"].shape[1], generator=generator)
    weight = tensors["weight"]
    bias = next((t.reshape(-1) for name, t in tensors.items() if name.endswith("bias")), None)
    try:
        _, weights, chosen = functional_call(router, tensors, (x,))
        narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        logits, narrow_weights, _ = functional_call(router, narrow, (x.bfloat16(),))
    except Exception:  # Whatever another module's forward may raise of these.
        return None
    expected = _by_expert(weights, chosen, len(weight))
    for rule in _candidates(router):
        got = _by_expert(*route_by_torch(x, weight, bias, rule), len(weight))
        if torch.allclose(got, expected, atol=TOLERANCE):
            return replace(
                rule,
                wide_logits=logits.dtype == torch.float32,
                wide_weights=narrow_weights.dtype == torch.float32,
            )
    return None


def _by_expert(weights: Tensor, chosen: Tensor, num_experts: int) -> Tensor:
    """Each token's weights where its experts are, ``[T, E]``: in whatever order they were found."""
    return torch.zeros(len(weights), num_experts).scatter_(1, chosen, weights.float())


def _candidates(router: nn.Module) -> Iterator[RouterRule]:
    """What the attributes of ``router`` may mean."""
    num_groups = getattr(router, "num_group", None) or getattr(router, "n_group", None) or 1
    top_groups = getattr(router, "topk_group", None) or 1
    scaling = getattr(router, "routed_scaling_factor", None) or 1.0
    least = getattr(router, "norm_min", None) or 0.0
    for is_sigmoid, renormalises, scales in product((False, True), repeat=3):
        yield RouterRule(
            top_k=router.top_k,  # type: ignore[arg-type]
            is_sigmoid=is_sigmoid,
            num_groups=num_groups,
            top_groups=top_groups,
            renormalises=renormalises,
            least_sum=least,
            added_to_sum=1e-20 if is_sigmoid else 0.0,
            scaling=scaling if scales else 1.0,
        )


def is_plain_mixture(experts: nn.Module) -> bool:
    """Whether ``experts`` are what ``Experts`` are: gated by silu, without bias, stored as
    ``[E, 2 * I, H]`` and ``[E, H, I]``."""
    gate_up, down = (getattr(experts, name, None) for name in ("gate_up_proj", "down_proj"))
    if not isinstance(gate_up, Tensor) or not isinstance(down, Tensor):
        return False
    flags = ("is_transposed", "has_bias", "has_post_expert_norm", "_is_expert_parallel")
    is_other = any(getattr(experts, flag, False) for flag in flags)
    is_gated = getattr(experts, "has_gate", False) and getattr(experts, "is_concatenated", True)
    if is_other or not is_gated or gate_up.dim() != 3:
        return False
    num_experts, rows, hidden = gate_up.shape
    return down.shape == (num_experts, hidden, rows // 2) and _is_gated_by_silu(experts)


def _is_gated_by_silu(experts: nn.Module) -> bool:
    # Large enough that limits of the activation would show.
    product = 20 * torch.randn(PROBES, 8, generator=torch.Generator().manual_seed(0))
    gate, up = product.chunk(2, dim=-1)
    apply_gate = getattr(experts, "_apply_gate", None)
    if apply_gate is None:
        return False
    return torch.allclose(apply_gate(product), nn.functional.silu(gate) * up)


def experts_of(module: nn.Module) -> Experts:
    """The weights of a mixture that ``is_plain_mixture``."""
    assert isinstance(module.gate_up_proj, Tensor) and isinstance(module.down_proj, Tensor)
    return Experts(module.gate_up_proj, module.down_proj)
