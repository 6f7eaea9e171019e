"""What the trials come to: counts beside what was asked of them, as JSON and Markdown."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from cgbench.gate.evidence import Evidence
from cgbench.words import Verdict
from gate.recording import PLANTED, Recording
from gate.trials import COLUMNS, Effect, Trial


@dataclass(frozen=True, slots=True)
class Share:
    """``count`` of ``total``, and the share that was asked for."""

    what: str
    count: int
    total: int
    asked: float
    at_most: bool

    @property
    def share(self) -> float | None:
        """None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def holds(self) -> bool:
        """Whether it is as asked: of nothing, nothing is shown."""
        if self.share is None:
            return False
        return self.share <= self.asked if self.at_most else self.share >= self.asked


def shares(trials: Sequence[Trial]) -> list[Share]:
    """What the gate must show, over all trials."""
    quiet = [trial for trial in trials if trial.kind != PLANTED]
    slow = [trial for trial in trials if trial.kind == PLANTED]
    quiet_cells = [verdicts for trial in quiet for verdicts in trial.cells.values()]
    effects = [effect for trial in slow for effect in trial.effects]
    regressed = [trial for trial in quiet if trial.is_regressed]
    undecided = [cell for cell in quiet_cells if Verdict.INCONCLUSIVE in cell]
    found = [trial for trial in slow if trial.is_regressed]
    covering = [effect for effect in effects if effect.covers]
    return [
        Share("A/A: comparisons that say regressed", len(regressed), len(quiet), 0.01, True),
        Share("A/A: cells inconclusive", len(undecided), len(quiet_cells), 0.05, True),
        Share("planted: comparisons that say regressed", len(found), len(slow), 0.95, False),
        Share("planted: intervals that hold it", len(covering), len(effects), 0.93, False),
    ]


def summary(
    trials: Sequence[Trial], recording: Recording, runs: Mapping[str, Sequence[Evidence]]
) -> dict[str, Any]:
    """Everything but the trials themselves."""
    plain = runs["plain"]
    return {
        "shares": [
            asdict(each) | {"share": each.share, "holds": each.holds} for each in shares(trials)
        ],
        "runs": {kind: len(each) for kind, each in runs.items()},
        "command": ["cgbench", "run", *recording.words, "--thin"],
        "planted_share": recording.share,
        "kernel": recording.kernel,
        "planted": recording.planted,
        "environment": plain[0].record.environment,
        "exit_codes": {
            kind: dict(Counter(trial.exit_code for trial in each))
            for kind, each in _by_kind(trials)
        },
        "cells": {kind: _cell_counts(each) for kind, each in _by_kind(trials)},
        "times": [_times(trials, what) for what in COLUMNS],
        "false_alarms": [
            {"base": trial.base, "new": trial.new, **_alarm(effect)}
            for trial in trials
            if trial.kind != PLANTED
            for effect in trial.effects
            if effect.verdict is Verdict.REGRESSED
        ],
        "seconds_per_run": {
            kind: sorted(run["seconds"] for run in recording.runs if run["kind"] == kind)
            for kind in runs
        },
    }


def _by_kind(trials: Sequence[Trial]) -> Iterable[tuple[str, list[Trial]]]:
    for kind, each in groupby(trials, lambda trial: trial.kind):
        yield kind, list(each)


def _cell_counts(trials: Sequence[Trial]) -> dict[str, int]:
    """Each verdict: cells in which some gated line has it."""
    found = Counter(
        verdict.value for trial in trials for cell in trial.cells.values() for verdict in cell
    )
    return {"cells": sum(len(trial.cells) for trial in trials), **dict(found)}


def _times(trials: Sequence[Trial], what: str) -> dict[str, Any]:
    """One time of the planted trials, all cells together."""
    effects = [
        effect
        for trial in trials
        if trial.kind == PLANTED
        for effect in trial.effects
        if effect.what == what
    ]
    regressed = sum(effect.verdict is Verdict.REGRESSED for effect in effects)
    return {
        "what": what,
        "intervals": len(effects),
        "regressed": regressed,
        "covering": sum(effect.covers for effect in effects),
        "mean_change": _mean([effect.change for effect in effects]),
        "mean_planted": _mean([effect.planted for effect in effects]),
        "mean_half_width": _mean([(effect.high - effect.low) / 2 for effect in effects]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _alarm(effect: Effect) -> dict[str, Any]:
    return {"what": effect.what, **effect.place._asdict(), "change": effect.change}


def markdown(found: dict[str, Any]) -> str:
    """The same for people."""
    gpu = found["environment"].get("gpu") or found["environment"].get("cpu")
    runs = ", ".join(f"{count} {kind}" for kind, count in found["runs"].items())
    parts = [
        "# The gate on trial",
        f"{gpu}; {runs} runs, each in a process of its own, in turn:",
        f"```\n{' '.join(found['command'])}\n```",
        _share_table(found["shares"]),
        _cell_table(found["cells"]),
        _time_table(found["times"]),
        _notes(found),
    ]
    return "\n\n".join(parts) + "\n"


def _share_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| {row['what']} | {row['count']} of {row['total']} | {_percent(row['share'])} "
        f"| {'at most' if row['at_most'] else 'at least'} {_percent(row['asked'])} "
        f"| {'yes' if row['holds'] else 'NO'} |"
        for row in rows
    ]
    return "\n".join(["| | count | share | asked | holds |", "|---|---:|---:|---:|---|", *lines])


def _cell_table(kinds: dict[str, dict[str, int]]) -> str:
    verdicts = [verdict.value for verdict in Verdict]
    lines = [
        f"| {kind} | {counts['cells']} | "
        + " | ".join(str(counts.get(verdict, 0)) for verdict in verdicts)
        + " |"
        for kind, counts in kinds.items()
    ]
    head = f"| cells with a gated line that is | all | {' | '.join(verdicts)} |"
    return "\n".join([head, "|---|---:|" + "---:|" * len(verdicts), *lines])


def _time_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| {row['what']} | {row['intervals']} | {row['regressed']} | {row['covering']} "
        f"| {_percent(row['mean_planted'])} | {_percent(row['mean_change'])} "
        f"| {_percent(row['mean_half_width'])} |"
        for row in rows
    ]
    head = (
        "| planted trials | intervals | regressed | hold the truth | planted | found | half-width |"
    )
    return "\n".join([head, "|---|" + "---:|" * 6, *lines])


def _notes(found: dict[str, Any]) -> str:
    asked = _percent(found["planted_share"])
    return (
        f"Planted: {asked} of each cell's iteration, by a kernel of known length in every captured "
        "graph (a busy wait on a CPU). The truth is that length over the plain runs' mean. "
        "Re-run: every pair of plain runs. Resampled: two draws of one run's rounds, neighbours "
        "together. Intervals are the gate's own, at its level for many cells. Pairs share runs, so "
        "they are fewer independent trials than their number."
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def write(found: dict[str, Any], path: Path) -> None:
    """``gate.json`` and ``gate.md`` in ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "gate.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    (path / "gate.md").write_text(markdown(found))
