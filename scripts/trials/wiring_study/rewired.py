"""Rewire a loaded draft head, and list the wirings that it can have."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.errors import BadInputError
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import DraftHead, adds_one, is_norm
from cgbench.models.heads.head_wiring import WIRING, stated_points
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.request.choices import (
    ConcatOrder,
    FirstEmbedding,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
)
from cgbench.request.parts import HeadWiring

VALUES: Mapping[str, tuple[str, ...]] = {
    "concat": tuple(ConcatOrder),
    "hidden_in": tuple(NormSide),
    "chain": tuple(NormSide),
    "out_norm": tuple(OutputNorm),
    # The target's form is one of these two.
    "norm_form": (NormForm.PLAIN, NormForm.ONE_PLUS),
    "first_embed": tuple(FirstEmbedding),
    "feed": tuple(ModuleFeed),
}
"""These are the values of each point of a wiring."""

assert tuple(VALUES) == WIRING

# An EAGLE-3 head leaves no choice of the others.
_OF_EAGLE3 = frozenset({"chain", "first_embed"})


@dataclass(frozen=True, slots=True)
class Rewirable:
    """A rewirable head is a loaded head with the weights of its norms as the checkpoint has them.

    ``declared`` is the wiring that the family, config.json and the flags state. ``out_norms`` are
    the modules' own output norms, or None if the checkpoint has none.
    """

    model: LoadedModel
    head: DraftHead
    family: HeadFamily
    declared: HeadWiring
    stored_norms: Mapping[str, Tensor]
    out_norms: tuple[nn.Module, ...] | None

    def apply(self, wiring: HeadWiring) -> None:
        """Wire the head as ``wiring`` states. It states every point."""
        family = replace(self.family, **stated_points(wiring))  # type: ignore[arg-type]
        for place, module in enumerate(self.head.mtp_modules):
            module.family = family
            if self.out_norms is not None:
                is_own = family.out_norm == OutputNorm.OWN
                module.out_norm = self.out_norms[place] if is_own else nn.Identity()
        self._scale_norms(family.norm_form)

    @torch.no_grad()
    def _scale_norms(self, form: NormForm) -> None:
        shift = (form == NormForm.ONE_PLUS) - _target_adds_one(self.model)
        weights = dict(self.head.named_parameters())
        for name, stored in self.stored_norms.items():
            # An output norm that is not in use has no place in the head.
            if name in weights:
                weights[name].copy_(stored.float() + shift)

    def wirings(self, points: Collection[str], spec_tokens: int) -> list[HeadWiring]:
        """Return every wiring that differs from the declared one in ``points`` alone.

        The declared one comes first. The other points of an EAGLE-3 head stay. Of wirings that
        cannot differ at k = ``spec_tokens``, one is returned.
        """
        if self.family.num_aux:
            points = _OF_EAGLE3 & {*points}
        declared = {name: getattr(self.declared, name) for name in WIRING}
        values = [self._values(name) if name in points else (declared[name],) for name in WIRING]
        every = (dict(zip(WIRING, choice, strict=True)) for choice in product(*values))
        plain = (self._without_idle(wiring, declared, spec_tokens) for wiring in every)
        start = self._without_idle(declared, declared, spec_tokens)
        return [_made(wiring) for wiring in _distinct([start, *plain])]

    def _values(self, name: str) -> tuple[str, ...]:
        if name == "out_norm" and self.out_norms is None:
            return tuple(value for value in VALUES[name] if value != OutputNorm.OWN)
        return VALUES[name]

    def _without_idle(
        self, wiring: dict[str, str], declared: Mapping[str, str], spec_tokens: int
    ) -> dict[str, str]:
        """Return ``wiring`` with the declared value of each point that nothing reads."""
        num_modules = self.head.num_modules
        reads_feed = spec_tokens > 1 and num_modules > 1
        feed = wiring["feed"] if reads_feed else declared["feed"]
        has_chain = spec_tokens > num_modules or (reads_feed and feed == ModuleFeed.CHAIN)
        reads_chain = has_chain and wiring["out_norm"] != OutputNorm.NONE
        chain = wiring["chain"] if reads_chain else declared["chain"]
        return {**wiring, "feed": feed, "chain": chain}


def _target_adds_one(model: LoadedModel) -> bool:
    """Return whether the target's norm modules scale by 1 + w."""
    norm = model.target.backbone.norm
    assert isinstance(norm, nn.Module)
    return adds_one(norm)


def _made(points: Mapping[str, Any]) -> HeadWiring:
    return HeadWiring(**points)


def _distinct(wirings: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    seen: set[tuple[str, ...]] = set()
    for wiring in wirings:
        if (key := tuple(wiring.values())) not in seen:
            seen.add(key)
            yield wiring


def load_rewirable(loading: Loading) -> Rewirable:
    """Load the model once, with everything of its head that any wiring reads.

    Norm weights are kept as the checkpoint has them, in the run's dtype. Raise what
    ``load_model`` raises, and ``BadInputError`` for a parallel drafter.
    """
    plan = plan_loading(loading)
    family, files = plan.family, plan.head_files
    assert family is not None and files is not None
    if family.is_parallel:
        raise BadInputError(
            f"--head: a {family.kind} has one wiring, so there is nothing to compare"
        )
    norm = "out_norm.weight"
    is_eagle3 = family.num_aux > 0
    has_own = not is_eagle3 and "out_norm" in family.names
    has_own = has_own and family.tensor_name(norm, files.first_number) in files.files
    out_norm = OutputNorm.OWN if has_own else family.out_norm
    as_stored = replace(family, out_norm=out_norm, norm_form=NormForm.TARGET)
    model = load_model(plan if is_eagle3 else replace(plan, family=as_stored))
    head = model.head
    assert head is not None
    form = family.norm_form
    if form == NormForm.TARGET:
        form = NormForm.ONE_PLUS if _target_adds_one(model) else NormForm.PLAIN
    stated = {name: getattr(family, name) for name in WIRING}
    declared = _made({**stated, "norm_form": form})
    weights = [] if is_eagle3 else [*head.named_parameters()]
    norms = {name: weight.detach().clone() for name, weight in weights if is_norm(name)}
    own = tuple(module.out_norm for module in head.mtp_modules) if has_own else None
    return Rewirable(model, head, family, declared, norms, own)
