"""Compare tokens with the reference's, and judge whether a near-tie excuses a difference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from cgbench.checks.findings import Difference, Where
from cgbench.checks.noise import picks_when_rounded_otherwise
from cgbench.checks.subject import Subject
from cgbench.parallel.ranks import first_unlike

# A near-tie: the two candidates are closer than the forward's own noise, counted on both.
NEAR_TIE_NOISES = 2


def first_difference(expected: Sequence[int], got: Sequence[int]) -> int | None:
    """Return the first position at which the two differ, or None. If one begins the other, it is
    the shorter's end.
    """
    if expected == got:
        return None
    pairs = zip(expected, got, strict=False)
    shorter = min(len(expected), len(got))
    return next((i for i, (ours, its) in enumerate(pairs) if ours != its), shorter)


@dataclass
class Judge:
    """A ``Judge`` compares tokens with those expected, in the way that the dtype allows.

    In float32 they are the same. In lower precision a batch's sums are rounded otherwise than one
    request's. So the first token that differs must be a near-tie in transformers' own forward. If
    tokens go to experts, it may also be one that transformers picks when it is rounded otherwise.
    What follows is another text, and is not compared.
    """

    subject: Subject
    compared: int = 0
    margins: list[float] = field(default_factory=list)
    chain_noises: list[float] = field(default_factory=list)
    rerouted: int = 0

    @property
    def figures(self) -> dict[str, float | int]:
        """Return the counts, margins and noises of what was compared, as a finding's figures."""
        figures = {
            "requests": self.compared,
            "largest_margin": max(self.margins, default=0.0),
            "noise": self.subject.plain.noise,
        }
        if self.chain_noises:
            figures["chain_noise"] = max(self.chain_noises)
        return figures | ({"rerouted": self.rerouted} if self.rerouted else {})

    def difference(
        self, prefix: Sequence[int], expected: list[int], got: list[int], where: Where
    ) -> Difference | None:
        """Return the first thing wrong in ``got``, tokens that follow ``prefix``. Return None if
        nothing is.
        """
        self.compared += 1
        parted = first_unlike((list(prefix), expected, got), "its tokens")
        if parted is not None:
            return Difference(parted, where, inputs=_inputs(prefix, expected, got))
        position = first_difference(expected, got)
        if position is None:
            return None
        inputs = _inputs(prefix, expected, got)
        if position == min(len(got), len(expected)):
            text = f"{len(got)} tokens emitted where {len(expected)} were expected"
            return Difference(text, replace(where, position=position), inputs=inputs)
        plain, before = self.subject.plain, [*prefix, *expected[:position]]
        logits = plain.next_logits(before)
        ours, its = logits[expected[position]].item(), logits[got[position]].item()
        if self.is_forgiven(abs(ours - its), lambda: plain.next_token(before), got[position]):
            return None
        return Difference(
            f"token {position} is {got[position]}, not {expected[position]}",
            replace(where, position=position),
            expected=expected[position],
            got=got[position],
            expected_logit=ours,
            got_logit=its,
            inputs=inputs,
        )

    def is_forgiven(
        self,
        margin: float,
        pick: Callable[[], int],
        got: int,
        chain_noise: Callable[[], float] | None = None,
    ) -> bool:
        """Return whether ``got`` may stand in this dtype, though the reference's token has a logit
        that is ``margin`` higher.

        ``pick`` runs the reference anew. ``chain_noise`` returns the noise of several forwards,
        each fed by the one before. It is more than that of one forward.
        """
        if self.subject.is_exact:
            return False
        if margin <= NEAR_TIE_NOISES * self.subject.plain.noise:
            self.margins.append(margin)
            return True
        if chain_noise is not None:
            self.chain_noises.append(chain_noise())
            if margin <= NEAR_TIE_NOISES * self.chain_noises[-1]:
                self.margins.append(margin)
                return True
        target, least = self.subject.spec.target, self.subject.least_move
        if target.has_mixtures and picks_when_rounded_otherwise(target, pick, got, least):
            self.rerouted += 1
            return True
        self.margins.append(margin)
        return False


def _inputs(prefix: Sequence[int], expected: list[int], got: list[int]) -> dict[str, torch.Tensor]:
    named = {"prefix_ids": list(prefix), "expected_ids": expected, "got_ids": got}
    return {name: torch.tensor(ids) for name, ids in named.items()}
