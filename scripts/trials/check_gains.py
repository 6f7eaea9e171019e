"""Does the interval of a gain hold the gain? State gains from some batch sizes, and look at all.

    python scripts/trials/check_gains.py RUN... --output results/FOLDER/gains.md

Inner batch sizes of a run are left out: each in turn, and every set of them that leaves three.
``cgbench tune``'s rule states gains from the rest, and the whole run gives the gain. A schedule is
one k, or another k from some batch size on, and the gain is over each fixed k. Cases of one batch
size are not independent, because they share its time.

The exit code is 1 if, of any workload's cases in all runs together, fewer lie within their
intervals than ``--confidence`` states.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from math import log
from pathlib import Path
from statistics import median

from cgbench.advice.cell_times import MeasuredTimes, measured_times
from cgbench.advice.gains import Ground, Work, gain_over, is_timed, work_of
from cgbench.advice.interpolation import interpolation_doubt
from cgbench.advice.lengths import Lengths, stated_lengths
from cgbench.advice.tiers import KTier
from cgbench.planning import Concurrency
from cgbench.rundir.store import RunDirectory
from cgbench.statistics import CONFIDENCE

ACCEPTANCE = "synthetic:0.8,0.7,0.6,0.5,0.4,0.3,0.2,0.1"
SWITCHES = (4, 16, 32)
NAMED = ("geometric:8", "uniform:1-64")
FEWEST_KEPT = 3
EACH = "each"
SEVERAL = "several"
LEFT_OUT = "those left out"
ALIKE = "every measured size"

Schedule = tuple[KTier, ...]


@dataclass(frozen=True)
class Row:
    """Cases of one run and one workload. ``half_widths`` are of logarithms."""

    run: str
    left_out: str
    workload: str
    half_widths: list[float] = field(default_factory=list)
    is_held: list[bool] = field(default_factory=list)

    @property
    def held(self) -> float:
        """The share of the cases whose interval holds the gain of the whole run."""
        return sum(self.is_held) / len(self.is_held)


def rows_of(
    run: RunDirectory, confidence: float, *, several: bool, named: Sequence[str] = NAMED
) -> list[Row]:
    """The cases of one run by workload, with each size left out or with ``several`` too.

    ``named`` are distributions besides the measured sizes and those left out.
    """
    times, lengths = measured_times([run]), stated_lengths(ACCEPTANCE, [run])
    (context,) = times.contexts
    rows: dict[tuple[str, str], Row] = {}
    for out in left_out(times.batch_sizes(context), several=several):
        which = SEVERAL if len(out) > 1 else EACH
        for workload, work in works(times, context, out, named):
            row = rows.setdefault((which, workload), Row(run.path.name, which, workload))
            add_cases(row, times, lengths, out, work, confidence)
    return [*rows.values()]


def left_out(sizes: Sequence[int], *, several: bool) -> Iterator[tuple[int, ...]]:
    """Inner batch sizes to leave out."""
    inner = sizes[1:-1]
    most = len(sizes) - FEWEST_KEPT if several else 1
    for count in range(1, most + 1):
        yield from combinations(inner, count)


def works(
    times: MeasuredTimes, context: int, out: tuple[int, ...], named: Sequence[str]
) -> Iterator[tuple[str, Work]]:
    """The workloads by name. The named ones take the most time, so they go with one size."""
    yield LEFT_OUT, Work(dict.fromkeys(out, 1 / len(out)), LEFT_OUT)
    yield ALIKE, work_of(times, context, None)
    if len(out) == 1:
        for name in named:
            yield name, work_of(times, context, Concurrency.parse(name))


def add_cases(
    row: Row,
    times: MeasuredTimes,
    lengths: Lengths,
    out: tuple[int, ...],
    work: Work,
    confidence: float,
) -> None:
    (context,) = times.contexts
    kept = {at: cell for at, cell in times.cells.items() if at.batch_size not in out}
    some = Ground(replace(times, cells=kept), lengths, context, work)
    whole = Ground(times, lengths, context, work)
    if not interpolation_doubt(some.times, context).num_sizes:
        return
    for tiers, k in cases(times, work):
        if not all(is_there(tiers, k, one) for one in (some, whole)):
            continue
        stated = gain_over(k, tiers, some, confidence).speedup
        found = gain_over(k, tiers, whole, confidence).speedup.value
        row.half_widths.append(log(stated.high / stated.value))
        row.is_held.append(stated.low <= found <= stated.high)


def cases(times: MeasuredTimes, work: Work) -> Iterator[tuple[Schedule, int]]:
    """Schedules of one or two k, and the fixed k to compare each with.

    Of schedules that are one on the workload there is one. A schedule that is the fixed k there
    cannot gain.
    """
    last = max(at.batch_size for at in times.cells)
    schedules: dict[tuple[int, ...], Schedule] = {}
    for few, many, switch in product(times.lengths, times.lengths, SWITCHES):
        on_work = tuple(few if n <= switch else many for n in work.weights)
        schedules.setdefault(on_work, (KTier(1, switch, few), KTier(switch + 1, last, many)))
    for on_work, tiers in schedules.items():
        yield from ((tiers, k) for k in times.lengths if {k} != {*on_work})


def is_there(tiers: Schedule, k: int, ground: Ground) -> bool:
    return is_timed(tiers, ground) and all(ground.time(n, k) for n in ground.work.weights)


def markdown(rows: Sequence[Row], runs: Sequence[RunDirectory], confidence: float) -> str:
    """What an interpolated time was wrong by, and how often the intervals held."""
    lines = [
        "| run | left-out sizes | error of a time [%] | error of a ratio [%] |",
        "|---|---:|---:|---:|",
    ]
    for run in runs:
        times = measured_times([run])
        doubt = interpolation_doubt(times, times.contexts[0])
        errors = f"{100 * doubt.error:.2f} | {100 * doubt.ratio_error:.2f}"
        lines.append(f"| {run.path.name} | {doubt.num_sizes} | {errors} |")
    lines += [
        "",
        f"Intervals at {confidence:.0%}:",
        "",
        "| run | left out | workload | cases | held [%] | half-width, median [%] |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        figures = f"{len(row.is_held)} | {100 * row.held:.1f} | {100 * median(row.half_widths):.1f}"
        lines.append(f"| {row.run} | {row.left_out} | {row.workload} | {figures} |")
    return "\n".join(lines) + "\n"


def shares_held(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """The share of the cases whose intervals hold, by what is left out and workload."""
    held: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        held[row.left_out, row.workload] += row.is_held
    return {key: sum(found) / len(found) for key, found in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one context each")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE)
    parser.add_argument("--output", type=Path, help="a Markdown file for the tables")
    asked = parser.parse_args()
    runs = [RunDirectory.open(path) for path in asked.runs]
    rows = [row for run in runs for row in rows_of(run, asked.confidence, several=True)]
    text = markdown(rows, runs, asked.confidence)
    if asked.output:
        command = f"`python scripts/trials/check_gains.py {' '.join(map(str, asked.runs))}`"
        asked.output.write_text(f"# Do the intervals of gains hold?\n\n{command}\n\n{text}")
    print(text)
    sys.exit(any(held < asked.confidence for held in shares_held(rows).values()))


if __name__ == "__main__":
    main()
