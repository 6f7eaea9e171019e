"""Find the mean acceptance lengths to calculate with, and record where each is from.

No length is ever assumed.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import log

from cgbench.errors import BadInputError
from cgbench.models.presets import PRESETS, golden_for
from cgbench.request.acceptance_lengths import GoldenLength, Length, StatedLength, parse_length
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import CELL
from cgbench.statistics import Estimate, log_length_estimate

GREEDY_OR_SAMPLED = ("greedy", "sampled")

NO_DRAFTS = "none: no k above 0 was measured. cgbench run --spec-tokens 0,1,2,3 measures some"


@dataclass(frozen=True)
class Lengths:
    """A ``Lengths`` holds the log of the mean acceptance length by k.

    ``source`` names where the lengths are from. A k that is not in ``logs`` has no known length. k
    = 0 always has one: a token an iteration.
    """

    source: str
    logs: dict[int, Estimate]

    def log_of(self, spec_tokens: int) -> Estimate | None:
        """Return the log of the length at k, or None if it is not known."""
        return Estimate(0.0) if spec_tokens == 0 else self.logs.get(spec_tokens)

    @property
    def is_known(self) -> bool:
        """Check that the length of at least one k above 0 is known."""
        return bool(self.logs)


def stated_lengths(text: str, runs: Sequence[RunDirectory]) -> Lengths:
    """Return the lengths that ``--acceptance`` states: golden:NAME, length:L or synthetic:RATE,..

    Raise ``BadInputError`` naming the flag, for another rule or if no k has a length. Raise it too
    for one length at several k. Of them the shortest would always seem best.
    """
    drafting = _drafting(runs)
    if text.partition(":")[0] in GREEDY_OR_SAMPLED:
        raise BadInputError(
            f"--acceptance {text}: only cgbench run measures it. State golden:NAME, length:L or "
            "synthetic:RATE,RATE,..., or leave it out"
        )
    if length := parse_length(text):
        found = _of_length(length, drafting)
        length = _of_these(length, runs)
    else:
        found = _of_rates(AcceptanceSetting.parse(text, (0,)).rates, drafting)
    if not found:
        there = f"any k of the run, {', '.join(map(str, drafting))}" if drafting else "k = 0 alone"
        raise BadInputError(f"--acceptance {text}: states no length for {there}")
    if isinstance(length, StatedLength) and len(found) > 1:
        raise BadInputError(
            f"--acceptance {text}: is one length, and k = {', '.join(map(str, found))} reach "
            "different ones. State golden:NAME or synthetic:RATE,RATE,..."
        )
    return Lengths(_words(text, length), found)


def _of_these(length: Length, runs: Sequence[RunDirectory]) -> Length:
    """Return ``length``, marked as borrowed if the runs are a preset's that it was not measured
    on.
    """
    if not isinstance(length, GoldenLength):
        return length
    labels = (str(run.record.model.get("label")).partition(" ")[0] for run in runs)
    presets = (PRESETS.get(label.removeprefix("preset:")) for label in labels)
    named = (golden_for(preset, length.row) for preset in presets if preset is not None)
    return next((golden for golden in named if golden.is_borrowed), length)


def lengths_of(runs: Sequence[RunDirectory]) -> Lengths:
    """Return the lengths that the runs hold: measured text, or a published table that
    they state.
    """
    rules = {rule for run in runs for rule in _rules(run)}
    if len(rules) != 1:
        return Lengths(_nothing("; ".join(sorted(rules))) if rules else NO_DRAFTS, {})
    rule = rules.pop()
    if rule.startswith("golden:"):
        length = parse_length(rule)
        assert length
        return Lengths(_words(rule, length), _of_length(length, _drafting(runs)))
    if rule.partition(":")[0] not in GREEDY_OR_SAMPLED:
        return Lengths(_nothing(rule), {})
    if any(run.record.model.get("random_weights") for run in runs):
        return Lengths(_nothing(f"{rule} on random weights"), {})
    return Lengths(f"measured by the run ({rule})", _measured(runs))


def _rules(run: RunDirectory) -> set[str]:
    latency = run.tables.latency
    return set(latency[latency["spec_tokens"] > 0]["acceptance"].tolist())


def _drafting(runs: Sequence[RunDirectory]) -> list[int]:
    return sorted({k for run in runs for k in run.tables.latency["spec_tokens"].tolist() if k})


def _nothing(rule: str) -> str:
    return (
        f"none: the run's rule, {rule}, is no measurement of acceptance. State one with "
        "--acceptance, such as golden:NAME or synthetic:RATE,RATE,..."
    )


def _words(text: str, length: Length | None) -> str:
    if isinstance(length, GoldenLength):
        other = ". Another model than this one" if length.is_borrowed else ""
        return (
            f"{text}: {length.row.model}, measured with its own drafter by InferenceX on "
            f"SPEED-Bench coding in one run for each k, so without an interval{other}"
        )
    return f"stated: {text}, without an interval"


def _of_length(length: Length, drafting: Sequence[int]) -> dict[int, Estimate]:
    """Return the log of the length for each k that has one and can reach it."""
    stated = {k: length.at(k) for k in drafting}
    return {k: Estimate(log(at)) for k, at in stated.items() if at and 1 <= at <= k + 1}


def _of_rates(rates: Sequence[float], drafting: Sequence[int]) -> dict[int, Estimate]:
    return {k: Estimate(log(1 + sum(rates[:k]))) for k in drafting if k <= len(rates)}


def _measured(runs: Sequence[RunDirectory]) -> dict[int, Estimate]:
    """Return the measured length of each k, from the one cell that decoded most rows.

    Every batch size and scope decodes the same prompts, so adding them up would count them twice.
    Rows of a prompt that a greedy batch repeats count once.
    """
    found: dict[int, tuple[float, Estimate]] = {}
    for run in runs:
        rules: dict[Hashable, str] = run.tables.latency.set_index(CELL)["acceptance"].to_dict()
        cells = run.tables.acceptance.sort_values("position")
        for key, cell in cells.groupby(CELL):
            k, batch_size = int(cell["spec_tokens"].iloc[0]), int(cell["batch_size"].iloc[0])
            copies = run.record.copies(rules[key], batch_size)
            accepted, drafted = cell["accepted"] / copies, cell["drafted"].iloc[0] / copies
            if drafted > found.get(k, (0.0,))[0]:
                found[k] = drafted, log_length_estimate(accepted.tolist(), drafted)
    return {k: estimate for k, (_, estimate) in found.items()}
