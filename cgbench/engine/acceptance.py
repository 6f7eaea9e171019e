"""An acceptance rule decides how many drafts verify keeps, and what it emits after them.

A rule works on the device and can be captured. Its randomness comes from ``RowState.uniforms``.
Every iteration fills them anew, and they are indexed by request. So a request's draws depend on no
row, bucket or scope.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from torch import Tensor

from cgbench.engine.distribution import distribution, draw
from cgbench.kernels import row_updates
from cgbench.kernels.row_updates import RowState
from cgbench.models.target import Target
from cgbench.request.acceptance_lengths import Length, conditional_rate
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.choices import AcceptanceKind, Drafts

Argmax = Callable[[Tensor], Tensor]
"""An argmax picks the index of the largest logit: ``[..., V]`` to ``[...]``.

If ranks share the vocabulary, it takes a rank's part of the logits.
"""


class AcceptanceRule(Protocol):
    """An acceptance rule decides an iteration from the drafts and the target's logits.

    Some rules use random draws too.
    """

    @property
    def is_random(self) -> bool:
        """Return whether ``uniforms`` must be filled before each call."""
        ...

    @property
    def draws_tokens(self) -> bool:
        """Return whether the rule draws tokens from whole distributions.

        If ranks share the vocabulary, such a rule is given whole logits, and rank 0's draws count.
        Any other rule is given its rank's part, because it needs the argmax alone.
        """
        ...

    @property
    def samples_drafts(self) -> bool:
        """Return whether the rule draws the drafts too.

        It draws them by ``uniforms`` and keeps their distributions in ``draft_probs``.
        """
        ...

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return the token ``[B]`` that plain decoding takes after the target's ``logits [B, V]``.

        ``uniforms [B]`` are in [0, 1), and serve this choice alone.
        """
        ...

    def draft(self, rows: RowState, logits: Tensor, step: int) -> Tensor:
        """Return draft ``step`` (1..k), ``[b]``, from the head's ``logits [b, V]``."""
        ...

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        """Decide which drafts are kept, from the target's ``logits [b, k + 1, V]``.

        Writes ``rows.num_accepted`` in 0..k and ``rows.out``, in place. out[j] is draft j + 1 for
        every j below num_accepted. After them comes the bonus or recovered token, and then any
        valid id.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Argmax:
    """The rules that draw no token take the argmax, for tokens and for drafts."""

    argmax: Argmax = field(default=row_updates.argmax, compare=False, repr=False)

    draws_tokens = False
    samples_drafts = False

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        return self.argmax(logits)

    def draft(self, rows: RowState, logits: Tensor, step: int) -> Tensor:
        return self.argmax(logits)


@dataclass(frozen=True, slots=True)
class Greedy(_Argmax):
    """This rule keeps the leading drafts that equal the target's argmax.

    The argmax follows them. The rule is lossless: the tokens emitted are those of plain greedy
    decoding.
    """

    is_random = False

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        row_updates.accept(rows, self.argmax(logits))


@dataclass(frozen=True, slots=True)
class Synthetic(_Argmax):
    """This rule keeps drafts at given rates, whatever the drafts are.

    It draws per request and per position. ``rates[j]`` is the unconditional rate of draft j + 1.
    The logits are computed and read as under ``Greedy``, so that an iteration costs the same. The
    text means nothing.
    """

    rates: tuple[float, ...]

    is_random = True

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        row_updates.accept(rows, self.argmax(logits), self._conditional(rows.spec_tokens))

    def _conditional(self, k: int) -> tuple[float, ...]:
        """Return each draft's rate, given that the one before it was kept."""
        before = (1.0, *self.rates)
        return tuple(
            rate / last if last else 0.0 for last, rate in zip(before, self.rates[:k], strict=False)
        )


@dataclass(frozen=True, slots=True)
class AtLength(_Argmax):
    """This rule keeps drafts so that the mean acceptance length is the stated one at every k.

    Each draft is kept at one rate, given that the one before it was, whatever the draft is.
    Everything else is as in ``Synthetic``.
    """

    length: Length

    is_random = True

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        row_updates.accept(rows, self.argmax(logits), self._conditional(rows.spec_tokens))

    def _conditional(self, k: int) -> tuple[float, ...]:
        if not k:
            return ()
        length = self.length.at(k)
        assert length is not None
        return (conditional_rate(length, k),) * k


@dataclass(frozen=True, slots=True)
class Sampled:
    """Speculative sampling keeps draft x with probability min(1, p(x) / q(x)).

    The token after the drafts kept is drawn from max(p - q, 0) after a rejection, and from p after
    k drafts.

    The rule is lossless. Whatever the head drafts, the tokens emitted are distributed as plain
    sampling from the target's p.

    ``drafts`` chooses the head's q. It is the head's own distribution, drawn from under the same
    settings. Or it is one-hot at the head's argmax, which needs no ``[slots, k + 1, V]`` buffer.

    Sources: Leviathan et al. 2023, arXiv:2211.17192, and Chen et al. 2023, arXiv:2302.01318.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    drafts: Drafts = Drafts.SAMPLED

    is_random = True
    draws_tokens = True

    @property
    def samples_drafts(self) -> bool:
        return self.drafts == Drafts.SAMPLED

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        return draw(self._probs(logits), uniforms, logits.argmax(-1))

    def draft(self, rows: RowState, logits: Tensor, step: int) -> Tensor:
        likeliest = logits.argmax(-1)
        if not self.samples_drafts:
            return likeliest
        probs = self._probs(logits)
        rows.draft_probs[rows.slot_of_row, step - 1] = probs
        return draw(probs, rows.uniforms[rows.slot_of_row, rows.spec_tokens + step], likeliest)

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        k = rows.spec_tokens
        draws = rows.uniforms[rows.slot_of_row]
        if not k:
            rows.num_accepted.zero_()
            rows.out[:, 0] = self.choose(logits[:, 0], draws[:, 0])
            return
        probs = self._probs(logits)
        kept = self._kept(rows, probs, draws[:, :k])
        rows.num_accepted.copy_(kept.cumprod(1).sum(1))
        end = rows.num_accepted[:, None]
        likeliest = logits.argmax(-1).gather(1, end)[:, 0]
        token = draw(self._residual(rows, probs), draws[:, k], likeliest)
        rows.out[:, :k] = rows.drafts
        rows.out.scatter_(1, end, token[:, None])

    def _probs(self, logits: Tensor) -> Tensor:
        return distribution(
            logits, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )

    def _kept(self, rows: RowState, probs: Tensor, draws: Tensor) -> Tensor:
        """Return which drafts pass on their own, ``[b, k]``.

        The test is u < p(x) / q(x), without the division.
        """
        of_target = probs.gather(2, rows.drafts[..., None])[..., 0]
        if not self.samples_drafts:
            return draws < of_target
        slots = rows.slot_of_row[:, None]
        return draws * rows.draft_probs[slots, rows.offsets[:-1], rows.drafts] < of_target

    def _residual(self, rows: RowState, probs: Tensor) -> Tensor:
        """Return max(p - q, 0) at row num_accepted, ``[b, V]``, not normalised.

        At row k it is p, because nothing was drafted there. May write to ``probs [b, k + 1, V]``.
        """
        if not self.samples_drafts:
            probs[:, :-1].scatter_(2, rows.drafts[..., None], 0.0)
        target = probs.take_along_dim(rows.num_accepted[:, None, None], 1)[:, 0]
        if not self.samples_drafts:
            return target
        return (target - rows.draft_probs[rows.slot_of_row, rows.num_accepted]).clamp_(min=0)


def rule_of(setting: AcceptanceSetting) -> AcceptanceRule:
    """Return the rule that ``--acceptance`` asks for."""
    match setting.kind:
        case AcceptanceKind.GREEDY:
            return Greedy()
        case AcceptanceKind.SAMPLED:
            asked = setting.sampling
            return Sampled(asked.temperature, asked.top_k, asked.top_p, asked.drafts)
        case AcceptanceKind.SYNTHETIC:
            return Synthetic(setting.rates)
    assert setting.length is not None
    return AtLength(setting.length)


def shared_rule(rule: AcceptanceRule, target: Target) -> AcceptanceRule:
    """Return ``rule`` in the form for a target whose vocabulary the ranks may divide."""
    if not isinstance(rule, _Argmax) or not target.divides_vocabulary:
        return rule
    return replace(rule, argmax=partial(target.argmax, argmax=row_updates.argmax))
