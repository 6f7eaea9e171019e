"""Turn runs into advice: break-even, the best k, and a schedule if the data shows that it gains."""

from collections.abc import Sequence
from dataclasses import dataclass

from cgbench.advice.best_k import Best, best_of_groups
from cgbench.advice.break_even import BreakEven, break_evens
from cgbench.advice.cell_times import MeasuredTimes, measured_times
from cgbench.advice.gains import (
    Gain,
    Ground,
    Work,
    best_fixed,
    fixed_lengths,
    gain_over,
    is_timed,
    work_of,
)
from cgbench.advice.interpolation import Doubt, interpolation_doubt
from cgbench.advice.lengths import Lengths, lengths_of, stated_lengths
from cgbench.advice.schedule_options import EngineOption, options_for, refusals_of
from cgbench.advice.slow_reasons import reason_lines
from cgbench.advice.tiers import KTier, tiers_of
from cgbench.errors import BadInputError, ExitCode
from cgbench.planning import Concurrency
from cgbench.rundir.store import RunDirectory
from cgbench.statistics import CONFIDENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A ``Question`` holds what is asked of runs, and the limits that an answer must meet.

    ``acceptance`` is what ``--acceptance`` states. None takes the runs' own. ``against`` is a fixed
    k that serves today. ``min_effect`` is the least change that counts.
    """

    acceptance: str | None = None
    concurrency: Concurrency | None = None
    against: int | None = None
    confidence: float = CONFIDENCE
    min_effect: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextAdvice:
    """A ``ContextAdvice`` holds the advice at one context length.

    ``bests`` are the best k of each batch size. ``tiers`` are the fewest that contradict no
    measurement, advised or not. ``chosen`` are the tiers advised. There is one if a fixed k is the
    best, and none if the data does not decide. ``unsettled`` are the fixed k that no interval
    separates from the best one. ``gains`` are those of the chosen tiers over fixed k, or else of
    ``tiers``. ``doubt`` is what times between the measured batch sizes may be wrong by.
    """

    context_len: int
    bests: tuple[Best, ...]
    tiers: tuple[KTier, ...]
    chosen: tuple[KTier, ...]
    unsettled: tuple[int, ...]
    gains: tuple[Gain, ...]
    work: Work
    doubt: Doubt
    conclusion: str

    @property
    def options(self) -> tuple[EngineOption, ...]:
        """Return the options of engines that serve the chosen tiers, if any of them drafts."""
        return options_for(self.chosen)

    @property
    def refusals(self) -> dict[str, str]:
        """Return why an engine would refuse the chosen tiers, by the engine's name."""
        return refusals_of(self.chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """An ``Advice`` holds everything that ``tune`` reports about runs."""

    times: MeasuredTimes
    lengths: Lengths
    break_evens: tuple[BreakEven, ...]
    contexts: tuple[ContextAdvice, ...]
    why_slow: tuple[str, ...]
    question: Question

    @property
    def exit_code(self) -> ExitCode:
        """Return ``INCONCLUSIVE`` if lengths are known and no context has advice,
        otherwise ``OK``.
        """
        could = self.lengths.is_known
        is_told = any(each.chosen for each in self.contexts)
        return ExitCode.INCONCLUSIVE if could and not is_told else ExitCode.OK


def advise(runs: Sequence[RunDirectory], question: Question) -> Advice:
    """Turn runs into advice on the best k, schedules and slow iterations.

    Raise ``CannotError`` for runs of two models, machines or settings. Raise ``BadInputError`` for
    runs with a cell twice or without a usable time. Raise it too if ``acceptance`` states no length
    for the runs' k, or ``against`` was not measured.
    """
    times = measured_times(runs)
    stated = question.acceptance
    lengths = lengths_of(runs) if stated is None else stated_lengths(stated, runs)
    _check_against(question.against, times)
    bests = best_of_groups(times, lengths, question.confidence, question.min_effect)
    return Advice(
        times=times,
        lengths=lengths,
        break_evens=tuple(break_evens(times, lengths, question.confidence)),
        contexts=tuple(
            _at_context(context, bests, times, lengths, question) for context in times.contexts
        ),
        why_slow=tuple(line for run in runs for line in reason_lines(run)),
        question=question,
    )


def _check_against(against: int | None, times: MeasuredTimes) -> None:
    if against is not None and against not in times.lengths:
        raise BadInputError(
            f"--against {against}: not measured. The run has k = "
            f"{', '.join(map(str, times.lengths))}"
        )


def _at_context(
    context_len: int,
    bests: Sequence[Best],
    times: MeasuredTimes,
    lengths: Lengths,
    question: Question,
) -> ContextAdvice:
    here = tuple(best for best in bests if best.group.context_len == context_len)
    work = work_of(times, context_len, question.concurrency)
    tiers = tiers_of(here, times, lengths, question.confidence)
    found = _decide(tiers, Ground(times, lengths, context_len, work), question)
    return ContextAdvice(
        context_len=context_len,
        bests=here,
        tiers=tiers,
        chosen=found.chosen,
        unsettled=found.unsettled,
        gains=_asked(found.gains, question.against),
        work=work,
        doubt=interpolation_doubt(times, context_len),
        conclusion=found.conclusion,
    )


def _asked(gains: tuple[Gain, ...], against: int | None) -> tuple[Gain, ...]:
    return tuple(gain for gain in gains if against in (None, gain.k))


@dataclass(frozen=True)
class _Decision:
    chosen: tuple[KTier, ...]
    unsettled: tuple[int, ...]
    gains: tuple[Gain, ...]
    conclusion: str


def _decide(tiers: tuple[KTier, ...], ground: Ground, question: Question) -> _Decision:
    """Choose a schedule if it beats the best fixed k, or else that k if it beats every other."""
    if not ground.lengths.is_known:
        return _Decision((), (), (), "no acceptance is known, so no k is advised")
    best = best_fixed(ground)
    if best is None or not tiers or len(fixed_lengths(ground)) == 1:
        return _Decision((), (), (), _why_not_timed(ground))
    if len(tiers) == 1 or not is_timed(tiers, ground):
        return _fixed(best, tiers[-1].last, ground, question, None)
    gains = _gains(tiers, ground, question)
    over_best = next(gain for gain in gains if gain.k == best)
    if over_best.speedup.low > 1 + question.min_effect:
        said = f"a schedule beats every fixed k that was measured: {_k(tiers)}"
        return _Decision(tiers, (), gains, said)
    return _fixed(best, tiers[-1].last, ground, question, over_best)


def _fixed(
    best: int, last: int, ground: Ground, question: Question, scheduled: Gain | None
) -> _Decision:
    """Choose the best fixed k if it beats every other, or else nothing.

    ``scheduled`` is what a schedule would gain over the best fixed k.
    """
    alone = (KTier(1, last, best),)
    gains = _gains(alone, ground, question)
    unsettled = tuple(g.k for g in gains if g.speedup.low <= 1 + question.min_effect)
    beside = _of_schedule(scheduled, question)
    if not unsettled:
        among = _among(ground, best)
        return _Decision(alone, (), gains, f"a fixed k = {best} is the best {among}{beside}")
    names = ", ".join(map(str, sorted((best, *unsettled))))
    said = (
        f"no k is advised: no interval tells k = {names} more than {question.min_effect:.1%} apart"
    )
    return _Decision((), unsettled, gains, f"{said}{beside}")


def _gains(tiers: tuple[KTier, ...], ground: Ground, question: Question) -> tuple[Gain, ...]:
    """Return the gains over every fixed k, without the k that the tiers are."""
    fixed = fixed_lengths(ground)
    itself = tiers[0].k if len(tiers) == 1 else None
    return tuple(
        gain_over(k, tiers, ground, question.confidence, len(fixed)) for k in fixed if k != itself
    )


def _among(ground: Ground, best: int) -> str:
    """Return the words that name the k among which the best one was found."""
    fixed = fixed_lengths(ground)
    among = f"of those measured, {', '.join(map(str, fixed))}"
    larger = [k for k in ground.times.lengths if k > max(fixed)]
    if larger:
        return f"{among}. k = {', '.join(map(str, larger))} cannot be judged at every batch size"
    return f"{among}. A larger k was not measured" if best == max(fixed) else among


def _of_schedule(gain: Gain | None, question: Question) -> str:
    """Return the words on a schedule that is not advised, or nothing."""
    if gain is None:
        return ""
    found = gain.speedup
    return (
        f". A schedule would give {found.value:.3f}x of k = {gain.k} "
        f"({found.low:.3f}x to {found.high:.3f}x), which is not more than {question.min_effect:.1%}"
    )


def _k(tiers: Sequence[KTier]) -> str:
    return ", ".join(f"k = {tier.k} for {tier.first} to {tier.last} requests" for tier in tiers)


def _why_not_timed(ground: Ground) -> str:
    first, *_ = ground.times.batch_sizes(ground.context_len)
    least = min(ground.work.weights)
    if least < first:
        return (
            f"the workload has {least} requests and the smallest measured batch size is {first}: "
            "no advice. Measure it with --batch-sizes"
        )
    return "fewer than two k have a time and a length at every batch size: no advice"
