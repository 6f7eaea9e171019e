"""Decide what makes two runs incomparable, what merely differs, and which cells meet."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cgbench.gate.evidence import Evidence, Key, MeasuredCell, Place
from cgbench.request.command_line import flag_name, resume_command
from cgbench.request.keys import Setting
from cgbench.rundir.record import resumed_words
from cgbench.rundir.record_parts import TelemetryFacts, Told
from cgbench.rundir.schema import LATENCY_KEY

# The fields of a place locate a cell within its run. The rest of the key is a setting of the whole
# run.
SETTINGS = tuple(name for name in LATENCY_KEY if name not in Place._fields)

WORKLOAD = ("version", "sha256", "context_band_tokens")
WORKLOAD_FLAGS = ("max_new_tokens", "ignore_eos", "seed")


CLOCKS: tuple[Told, ...] = ("sm_clock_mhz", "memory_clock_mhz")

# Blocks of one run may be this far apart before they are discarded.
CLOCK_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Pair:
    """A ``Pair`` joins the cells of both runs at one key. A cell is None if its run lacks it."""

    base: MeasuredCell | None
    new: MeasuredCell | None

    @property
    def cells(self) -> tuple[MeasuredCell, ...]:
        """Return the cells that are there, one or two."""
        return tuple(cell for cell in (self.base, self.new) if cell)

    @property
    def place(self) -> Place:
        """Return the place that both cells share."""
        return self.cells[0].place


def blockers(base: Evidence, new: Evidence) -> Iterator[str]:
    """Yield a line for each thing that keeps the runs from being compared."""
    for run in (base, new):
        if not run.record.complete:
            yield f"{run.name} is not finished. {_cure(run)}"
        if not run.cells:
            yield f"{run.name} has no cell"
    a, b = base.record, new.record
    yield from _differing("GPU", a.environment.get("gpu"), b.environment.get("gpu"))
    yield from _disjoint("device", _settings(base, "device"), _settings(new, "device"))
    yield from _differing(
        "model fingerprint", a.model.get("fingerprint"), b.model.get("fingerprint")
    )
    for name in WORKLOAD:
        yield from _differing(f"workload {name}", a.workload.get(name), b.workload.get(name))
    for name in WORKLOAD_FLAGS:
        yield from _differing(flag_name(name), a.arguments.get(name), b.arguments.get(name))
    for name in SETTINGS:
        yield from _disjoint(name, _settings(base, name), _settings(new, name))


def _cure(run: Evidence) -> str:
    """Return what finishes a run. Nothing goes on with a run whose engine failed."""
    if engine := run.record.engine.get("name"):
        return f"{engine} failed in it. Measure it again with cgbench peers"
    return f"This goes on: {resume_command(run.record.arguments, run.path)}"


def differences(base: Evidence, new: Evidence) -> Iterator[str]:
    """Yield a line for each difference that never blocks, because it is what is under test.

    These are the environment, such as driver, versions and commit, the arguments, and the clocks. A
    resumed run gives a line too.
    """
    a, b = base.record, new.record
    yield from _each_differing(a.environment, b.environment, lambda name: name)
    yield from _each_differing(a.arguments, b.arguments, flag_name)
    for name in CLOCKS:
        yield from _other_clocks(
            name, *(_median(run.record.telemetry, name) for run in (base, new))
        )
    for run in (base, new):
        yield from (
            f"{run.name} was resumed: {entry}" for entry in map(resumed_words, run.record.resumed)
        )


def other_processor(base: Evidence, new: Evidence) -> bool:
    """Return whether the runs, on CPUs, had CPUs of two names. Then their times are no evidence
    about the code.
    """
    names = {run.record.environment.get("cpu") for run in (base, new)}
    return _settings(base, "device") == {"cpu"} and len(names) > 1


def pairs(base: Evidence, new: Evidence) -> list[Pair]:
    """Return a pair for every cell of either run, in BASE's order first."""
    keys: dict[Key, None] = dict.fromkeys([*base.cells, *new.cells])
    return [Pair(base.cells.get(key), new.cells.get(key)) for key in keys]


def _settings(run: Evidence, name: str) -> set[str]:
    """Return the distinct values of one column."""
    return {cell.settings[name] for cell in run.cells.values()}


def _differing(what: str, base: Any, new: Any) -> Iterator[str]:
    if base != new:
        yield f"{what}: {base} in BASE, {new} in NEW"


def _disjoint(what: str, base: set[str], new: set[str]) -> Iterator[str]:
    """Yield a difference if the runs share no value. If they share one, cells that one run lacks
    are reported as missing. A run without cells has no value to differ in.
    """
    if base and new and base.isdisjoint(new):
        yield from _differing(what, *("/".join(sorted(values)) for values in (base, new)))


def _each_differing(
    base: Mapping[str, Setting], new: Mapping[str, Setting], name_of: Callable[[str], str]
) -> Iterator[str]:
    for name in dict.fromkeys([*base, *new]):
        yield from _differing(name_of(name), base.get(name), new.get(name))


def _median(telemetry: TelemetryFacts, name: Told) -> float | None:
    spread = telemetry.get(name)
    return None if spread is None else spread["median"]


def _other_clocks(name: str, base: float | None, new: float | None) -> Iterator[str]:
    if base and new and abs(new / base - 1) > CLOCK_TOLERANCE:
        yield from _differing(f"median {name} of the timed blocks", base, new)
