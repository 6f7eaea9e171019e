"""The timed pass with planted times and a planted GPU: what is kept, dropped, and when it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cgbench.floor.telemetry import Reading, Watch
from cgbench.measure import rounds
from cgbench.measure.clock import IterationTime
from cgbench.measure.group import Group, measure_group
from cgbench.measure.session import Session
from cgbench.measure.stop_rule import MIN_BLOCKS
from cgbench.rundir.block_schema import BLOCKS
from cgbench.rundir.summary import latency_frame, samples_frame, telemetry_summary, typed_frame
from cgbench.tables.latency import latency_markdown
from cgbench.words import Stage, Status
from tests.support.bigram import WRONG_AFTER, make_bigram
from tests.support.session import BATCH, KS, make_session

QUIET = Reading(1980, 3201, 45, 300.0, frozenset(), frozenset({7}))
TYPICAL_S = 1e-3


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return make_session(make_bigram(tmp_path_factory.mktemp("bigram"), WRONG_AFTER), iterations=4)


@dataclass
class Machine:
    """Times and telemetry by the count of blocks so far; its clock runs only while it measures."""

    time_s: Callable[[int, int], float] = lambda k, block: TYPICAL_S
    reading: Callable[[int], Reading] = lambda block: QUIET
    now: float = 0.0
    order: list[int] = field(default_factory=list)

    def time_iterations(self, runner: Any, batch: int, count: int, flush: object) -> Any:
        k = runner.state.spec_tokens
        seconds = self.time_s(k, self.order.count(k))
        self.order.append(k)
        self.now += 0.1
        return [IterationTime(seconds, seconds)] * count

    def read(self) -> Reading:
        return self.reading(len(self.order) - 1)


def measured(
    session: Session, machine: Machine, monkeypatch: pytest.MonkeyPatch, **changes: Any
) -> Group:
    monkeypatch.setattr(rounds, "time_iterations", machine.time_iterations)
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: machine.now))
    options = replace(session.options, **{"min_time_s": 0.0, "max_time_s": 30.0} | changes)
    return measure_group(replace(session, options=options, watch=Watch(machine)), BATCH, int)


@pytest.fixture(scope="module")
def quiet(session: Session) -> tuple[Machine, Group]:
    """Equal times on a machine that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine()
        return machine, measured(session, machine, patch)


def test_equal_times_settle_at_the_fewest_blocks(quiet: tuple[Machine, Group]) -> None:
    machine, group = quiet
    assert len(machine.order) == MIN_BLOCKS * len(KS)
    assert group.doubts == [] and {cell.discarded_blocks for cell in group.cells} == {0}


def test_every_round_has_every_cell_in_an_order_of_its_own(
    session: Session, quiet: tuple[Machine, Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _ = quiet
    found = [tuple(machine.order[i : i + 3]) for i in range(0, len(machine.order), 3)]
    assert all(sorted(each) == list(KS) for each in found) and len(set(found)) > 2
    again = Machine()
    measured(session, again, monkeypatch)
    assert again.order == machine.order


def test_min_time_goes_on_with_settled_cells(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    measured(session, machine, monkeypatch, min_time_s=5.0)
    assert machine.now == pytest.approx(5.0, abs=0.3)


def test_a_cell_that_never_settles_ends_at_max_time_and_is_told(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(time_s=lambda k, block: TYPICAL_S * (1 + (k == 3) * (block % 3) / 3))
    group = measured(session, machine, monkeypatch, max_time_s=9.0)
    assert machine.now == pytest.approx(9.0, abs=0.3)
    (line,) = group.doubts
    assert "batch size 2: 1 of 3 cells" in line and "eager k=3" in line
    frame = latency_frame(group.cells, samples_frame(group.samples)).set_index("spec_tokens")
    assert frame.loc[3, "half_width_frac"] > 0.005 > frame.loc[0, "half_width_frac"]


def test_a_drift_hits_all_cells_alike(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 % a second: rows one after another would differ by a tenth; interleaved by 1 %."""
    machine = Machine()
    machine.time_s = lambda k, block: TYPICAL_S * (1 + 0.01 * machine.now)
    group = measured(session, machine, monkeypatch, max_time_s=15.0)
    frame = latency_frame(group.cells, samples_frame(group.samples))
    assert machine.now > 10
    assert frame["iteration_p50_ms"].max() / frame["iteration_p50_ms"].min() < 1.01
    # Blocks that follow a drift repeat each other: it does not look precise.
    assert len(group.doubts) == 1


def throttled_in(blocks: range) -> Machine:
    """Hot and twice as slow there."""
    hot = replace(QUIET, reasons=frozenset({"hw_thermal"}), sm_clock_mhz=1200)
    machine = Machine(reading=lambda block: hot if block in blocks else QUIET)
    machine.time_s = lambda k, _: TYPICAL_S * (1 + (len(machine.order) in blocks))
    return machine


def test_throttled_blocks_are_counted_out_and_measured_again(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = throttled_in(range(6, 9))
    group = measured(session, machine, monkeypatch)
    frame = latency_frame(group.cells, samples_frame(group.samples))
    assert set(frame["iteration_p50_ms"]) == {1.0} and set(frame["iteration_p99_ms"]) == {1.0}
    assert min(frame["blocks"]) >= MIN_BLOCKS and sum(frame["discarded_blocks"]) >= 3
    assert set(frame["status"]) == {"ok"}
    blocks = typed_frame(group.blocks, BLOCKS)
    slow = blocks["iteration_p50_s"] > TYPICAL_S
    assert slow.sum() == 3 and set(blocks.loc[slow, "discarded"]) == {"hw_thermal"}
    summary = telemetry_summary(blocks)
    assert summary["sm_clock_mhz"] == {"min": 1200, "median": 1980, "max": 1980}
    assert summary["throttle_reasons"] == ["hw_thermal"]
    assert summary["discarded"] == {"hw_thermal": sum(frame["discarded_blocks"])}


@pytest.fixture(scope="module")
def throttled(session: Session) -> Group:
    """On a GPU that throttles all the while."""
    with pytest.MonkeyPatch.context() as patch:
        return measured(session, throttled_in(range(1000)), patch, max_time_s=1.0)


def test_a_gpu_that_throttles_all_the_while_is_disturbed(throttled: Group) -> None:
    assert {cell.status for cell in throttled.cells} == {Status.DISTURBED}
    assert not [sample for sample in throttled.samples if sample.stage == Stage.ITERATION]
    assert "nothing" in throttled.doubts[0]


def test_another_process_on_the_gpu_disturbs_what_it_shares(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(QUIET, processes=frozenset({7, 99}))
    machine = Machine(reading=lambda block: other if block >= 12 else QUIET)
    group = measured(session, machine, monkeypatch, max_time_s=5.0)
    assert {cell.status for cell in group.cells} == {Status.DISTURBED}
    blocks = typed_frame(group.blocks, BLOCKS)
    assert set(blocks["discarded"].dropna()) == {"other_process"}
    assert telemetry_summary(blocks)["other_processes"] == 1


def test_a_clock_that_changes_for_good_disturbs(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = replace(QUIET, sm_clock_mhz=1700)
    machine = Machine(reading=lambda block: slower if block >= 14 else QUIET)
    group = measured(session, machine, monkeypatch, max_time_s=1.0)
    assert Status.DISTURBED in {cell.status for cell in group.cells}
    assert set(typed_frame(group.blocks, BLOCKS)["discarded"].dropna()) == {"sm_clock"}


def test_the_power_limit_disturbs_nothing_and_is_told(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped = replace(QUIET, reasons=frozenset({"sw_power_cap"}))
    machine = Machine(reading=lambda block: replace(capped, sm_clock_mhz=1965 - 100 * (block % 6)))
    group = measured(session, machine, monkeypatch)
    assert {cell.status for cell in group.cells} == {Status.OK}
    assert {cell.discarded_blocks for cell in group.cells} == {0}
    (line,) = group.doubts
    assert line.startswith("batch size 2: ") and "power limit" in line and "1,465" in line


def test_a_disturbed_group_is_written_and_read_again(
    session: Session, throttled: Group, tmp_path: Path
) -> None:
    from cgbench.rundir.store import RunDirectory
    from tests.support.example import make_record

    record = make_record()
    record.model["label"] = session.deployment.model.label
    directory = RunDirectory.create(tmp_path / "run", record)
    directory.write_group(throttled.cells, throttled.samples, (), throttled.blocks)
    frame = directory.finish(latency_markdown)
    assert set(frame["status"]) == {"disturbed"} and frame["iteration_p50_ms"].isna().all()
    assert len(RunDirectory.open(tmp_path / "run").blocks()) == len(throttled.blocks)
