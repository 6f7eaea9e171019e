"""Rounds of several engines: turns, prefills, failures, and what is counted of the tokens."""

from cgbench.engines.drivers.messages import Profiled
from cgbench.engines.engine_cells import EngineCell, time_engines
from cgbench.engines.engine_process import EngineError
from cgbench.floor.telemetry import NoTelemetry, Watch
from cgbench.words import Stage, Status
from tests.support.engines import Scripted, cell_of, work_of


class After:
    """A rule that ends after a number of rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def is_over(self, rounds: int, elapsed_s: float, medians: object) -> bool:
        return rounds >= self.rounds


def timed(cells: list[EngineCell], *, rounds: int = 3, band: int = 64) -> list[EngineCell]:
    failed: list[EngineCell] = []
    watch = Watch(NoTelemetry())
    time_engines(
        cells,
        work_of(band=band),
        After(rounds),
        watch,
        on_failure=failed.append,
        on_round=lambda: None,
    )
    return failed


def test_cells_take_blocks_in_turn_and_profiles_come_last() -> None:
    log: list[str] = []
    cells = [cell_of(Scripted(name, log)) for name in ("a", "b")]
    assert timed(cells) == []
    steps = [line for line in log if line.endswith("steps")]
    for number in range(3):
        assert {*steps[2 * number : 2 * number + 2]} == {"a steps", "b steps"}
    assert {*log[-2:]} == {"a profile", "b profile"}
    # The batch of each goes on, so it is prefilled once.
    assert sum("prefill" in line for line in log) == 2
    assert [len(cell.samples()) for cell in cells] == [12, 12]
    assert cells[0].samples()[0].stage == Stage.ITERATION


def test_a_batch_that_has_left_the_band_is_prefilled_again() -> None:
    log: list[str] = []
    # A block is 8 or 4 untimed steps and 4 timed ones, of a token each.
    cell = cell_of(Scripted("a", log))
    timed([cell], rounds=5, band=16)
    # After the prefill's token and two blocks each request has 21, which is over 16.
    assert [line for line in log if "profile" not in line][:5] == [
        "a prefill k=0",
        "a steps",
        "a steps",
        "a prefill k=0",
        "a steps",
    ]
    lengths = [block.mean_context_len for block in cell.blocks]
    assert lengths[:3] == [10 + 8 + 1.5, 10 + 12 + 4 + 1.5, 10 + 8 + 1.5]


def test_cells_of_one_process_begin_a_batch_each_time() -> None:
    log: list[str] = []
    process = Scripted("a", log, begins_anew=True)
    timed([cell_of(process, 0), cell_of(process, 3)], rounds=2)
    calls = [line for line in log if "profile" not in line]
    assert calls[::2] and all("prefill" in line for line in calls[:8:2])
    assert {line for line in calls if "prefill" in line} == {"a prefill k=0", "a prefill k=3"}


def test_an_engine_that_fails_leaves_and_the_others_go_on() -> None:
    log: list[str] = []
    sound, bad = cell_of(Scripted("a", log)), cell_of(Scripted("b", log, fails_at=2))
    assert timed([sound, bad]) == [bad]
    assert len(sound.blocks) == 3 and sound.profiled is not None
    assert bad.blocks == [] and "exit code 7" in bad.failure
    assert log.count("b steps") == 2


def test_kept_drafts_are_counted_by_position() -> None:
    cell = cell_of(Scripted("a", [], emitted=3), spec_tokens=3)
    timed([cell])
    (first, second, third), drafted = cell.accepted_per_pos()
    # Every request of every timed step kept two drafts of three.
    assert drafted == 3 * 4 * 2
    assert (first, second, third) == (drafted, drafted, 0)
    assert cell.status is Status.OK


def test_a_step_without_tokens_is_no_drafted_step() -> None:
    cell = cell_of(Scripted("a", [], emitted=0), spec_tokens=1)
    timed([cell])
    assert cell.accepted_per_pos() == ((0,), 0)


class Unprofiled(Scripted):
    """A process that ends when it is profiled, or that cannot sum its profile."""

    ends = True

    def profile(self, count: int, untimed: int, timeout_s: float) -> Profiled:
        if self.ends:
            raise EngineError("a ended in profile with exit code 7. Its log is x.log")
        return Profiled(count, 0.01, [count] * self.size, problem="AttributeError: no kind")


def test_times_stay_where_a_profile_fails() -> None:
    log: list[str] = []
    first, second, whole = Unprofiled("a", log), Unprofiled("b", log), Scripted("c", log)
    second.ends = False
    cells = [cell_of(process) for process in (first, second, whole)]
    assert timed(cells) == []
    assert [cell.status for cell in cells] == [Status.OK] * 3
    assert all(len(cell.samples()) == 12 for cell in cells)
    words = ("ended in profile", "no kind", "")
    assert all(word in cell.unprofiled for word, cell in zip(words, cells, strict=True))
    assert not cells[2].unprofiled
    # The engine whose sums failed went well, so its tokens are known.
    assert not cells[0].tokens and cells[1].tokens
