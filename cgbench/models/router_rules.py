"""Find the rule of a transformers router by trying it, so that a kernel can compute it.

transformers writes the same router under many class names, and models that share a name may differ.
So a ``RouterRule`` is made from the module's attributes, and compared with the module's own
forward.
"""

import functools
from collections.abc import Iterator
from dataclasses import astuple, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cgbench.kernels.moe.router_rule import RouterRule, route_by_torch
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target

PROBES = 64
TOLERANCE = 1e-5
MOST = 0.8
"""At least this share of tokens must agree in bfloat16.

There logits tie, and each side breaks the tie its own way.
"""

OWN_PATH, TRANSFORMERS = "cgbench", "transformers"

RULE_VALUES = "rule_values"
"""A router that is an operator has this attribute, which holds the fields of its rule."""

ORDERED = "ordered_by"
"""A router that gives the best expert first has this attribute, with the fields of its rule."""

APPLIES_EXPERTS = "applies_experts"
"""Experts that are an operator have this attribute."""

APPLIES_SHARED = "applies_shared"
"""A mixture's block has this attribute if that operator computes its shared expert too."""

MLP_PARTS = ("gate_proj", "up_proj", "down_proj")
"""These are transformers' names of a gated MLP's projections."""

PRODUCTS = "products"
"""This is the path of a shared expert whose products run by themselves."""

CORRECTION = "e_score_correction_bias"


def correction_bias(router: nn.Module) -> Tensor | None:
    """Return the router's correction ``[E]``, or None if it has none.

    It is added to the scores for the choice of experts alone.
    """
    holder = getattr(router, "moe_statics", router)
    bias = getattr(holder, CORRECTION, None)
    return None if bias is None else bias.reshape(-1)


def router_rule(router: nn.Module) -> RouterRule | None:
    """Return the rule of ``router``, or None if its forward does something else.

    ``router`` is a module with ``weight [E, H]`` and ``top_k``. Its own weights are not used,
    because they may all be alike, and then every rule would fit.
    """
    wide, narrow = _Probe(router, torch.float32), _Probe(router, torch.bfloat16)
    try:
        wide_answer, narrow_answer = wide.answer(router), narrow.answer(router)
    except Exception:  # Another module's forward may raise anything.
        return None
    for rule in _candidates(router):
        if wide.agreement(wide_answer, rule) < 1:
            continue
        wide_weights = narrow_answer[0].dtype == torch.float32
        # A router's logits are no evidence, because some return other ones than they choose by.
        rules = [
            replace(rule, wide_logits=is_wide, wide_weights=wide_weights)
            for is_wide in (False, True)
        ]
        agreements = [narrow.agreement(narrow_answer, each) for each in rules]
        if max(agreements) >= MOST:
            return rules[agreements.index(max(agreements))]
    return None


class _Probe:
    """A probe holds drawn tensors in the place of a router's own, and tokens to route by them."""

    def __init__(self, router: nn.Module, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            name: _draw(tensor, generator).to(dtype)
            for name, tensor in [*router.named_parameters(), *router.named_buffers()]
        }
        self.weight = self.tensors["weight"]
        hidden = self.weight.shape[1]
        # Logits near 1. Saturated scores would hide what is done to them: their sum is 1 already.
        x = torch.randn(PROBES, hidden, generator=generator) / hidden**0.5
        self.x = x.to(dtype)
        biases = [each for name, each in self.tensors.items() if name.endswith(CORRECTION)]
        self.bias = biases[0].reshape(-1) if biases else None

    def answer(self, router: nn.Module) -> tuple[Tensor, Tensor]:
        """Return the weights and experts ``[T, K]`` that ``router`` gives."""
        _, weights, chosen = functional_call(router, self.tensors, (self.x,))
        return weights, chosen

    def agreement(self, answer: tuple[Tensor, Tensor], rule: RouterRule) -> float:
        """Return the share of tokens for which ``rule`` gives ``answer``."""
        got = self._by_expert(*route_by_torch(self.x, self.weight, self.bias, rule))
        is_alike = (got - self._by_expert(*answer)).abs().amax(1) < TOLERANCE
        return float(is_alike.float().mean())

    def _by_expert(self, weights: Tensor, chosen: Tensor) -> Tensor:
        """Return each token's weights at its experts' places, ``[T, E]``, whatever the order of the
        choice."""
        nothing = torch.zeros(PROBES, len(self.weight))
        return nothing.scatter_(1, chosen, weights.float())


def _draw(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return a drawn tensor of the same shape.

    A matrix has unit variance. A bias has the size of differences between scores, so that both
    count.
    """
    drawn = torch.randn(tensor.shape, generator=generator)
    return drawn if tensor.dim() == 2 and tensor.shape[0] > 1 else drawn / 10


def _candidates(router: nn.Module) -> Iterator[RouterRule]:
    """Yield the rules that the attributes of ``router`` may mean."""
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


@functools.cache
def _ordered_router(kind: Any) -> type[nn.Module]:
    """Return a subclass of router ``kind`` that gives the best expert first."""

    class OrderedRouter(kind):  # type: ignore[misc]
        def forward(self, hidden_states: Tensor) -> Any:
            x = hidden_states.reshape(-1, hidden_states.shape[-1])
            rule = RouterRule(*getattr(self, ORDERED))
            return None, *route_by_torch(x, self.weight, correction_bias(self), rule)

    return OrderedRouter


def order_choices(module: nn.Module) -> None:
    """Make every router in ``module`` that has a rule give the best expert first, in place.

    transformers leaves the order of some routers' choices open. Who pairs the weights with other
    experts, as balanced routing does, needs one order on every path.
    """
    for block, _ in mixture_blocks(module):
        for part, rule in ruled_routers(block):
            kind: Any = type(part)
            part.__class__ = _ordered_router(kind)
            setattr(part, ORDERED, astuple(rule))


def mixture_blocks(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the blocks in ``module`` that have experts, each beside them."""
    found = ((block, getattr(block, "experts", None)) for block in module.modules())
    return [(block, experts) for block, experts in found if isinstance(experts, nn.Module)]


def ruled_routers(block: nn.Module) -> Iterator[tuple[nn.Module, RouterRule]]:
    """Yield the routers of a mixture's ``block`` that have a rule, each with it.

    A router that gives the best expert first has been tried already.
    """
    for part in block.children():
        if not is_router(part, block.experts):
            continue
        known = getattr(part, ORDERED, None)
        rule = router_rule(part) if known is None else RouterRule(*known)
        if rule is not None:
            yield part, rule


def is_router(part: nn.Module, experts: Any) -> bool:
    """Return whether ``part`` looks like the router of ``experts``."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return False
    return hasattr(part, "top_k") and weight.shape[0] == getattr(experts, "num_experts", None)


def is_plain_mixture(experts: nn.Module) -> bool:
    """Return whether ``experts`` compute what ``Experts`` define.

    They must be gated by silu, have no bias, and be stored as ``[E, 2 * I, H]`` and ``[E, H, I]``.
    """
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


def is_gated_mlp(part: nn.Module) -> bool:
    """Return whether ``part`` has the projections of a gated MLP, as a shared expert has."""
    return all(isinstance(getattr(part, name, None), nn.Module) for name in MLP_PARTS)


class MixturePaths(NamedTuple):
    """This class names what runs the mixtures of experts in decode steps.

    The name is ``cgbench`` for kernels of ours. Otherwise it is transformers' implementation for
    experts, and ``transformers`` for routers. A shared expert runs inside the experts' kernels
    (``cgbench``) or by ``products`` of its own. It is None if there is none. Names are joined by
    "and" if layers differ.
    """

    experts: str
    router: str
    shared: str | None


def mixture_paths(target: Target, head: DraftHead | None) -> MixturePaths | None:
    """Return what runs the mixtures of a target and its head now.

    It is None for a dense model.
    """
    backbone: nn.Module = target.backbone
    modules = [backbone] if head is None else [backbone, head]
    blocks = [
        block
        for module in modules
        for block in module.modules()
        if hasattr(getattr(block, "experts", None), "is_transposed")
    ]
    if not blocks:
        return None
    library = str(target.config._experts_implementation)
    experts = {OWN_PATH if hasattr(block.experts, APPLIES_EXPERTS) else library for block in blocks}
    routers = {
        OWN_PATH if any(hasattr(part, RULE_VALUES) for part in block.children()) else TRANSFORMERS
        for block in blocks
    }
    shared = {
        OWN_PATH if hasattr(block, APPLIES_SHARED) else PRODUCTS
        for block in blocks
        if any(is_gated_mlp(part) for part in block.children())
    }
    return MixturePaths(_joined(experts), _joined(routers), _joined(shared) or None)


def _joined(paths: set[str]) -> str:
    return " and ".join(sorted(paths))
