"""Timing on the CPU: as many samples as asked for, the stages in order, and no time invented."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from cgbench.measure import clock as timing
from cgbench.measure.clock import eager_stages, time_iterations
from tests.support.tiny import (
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)

BATCH = 2
STAGES = {
    0: ["verify", "accept", "commit"],
    1: ["verify", "accept", "draft_1", "commit"],
    3: ["verify", "accept", "draft_1", "draft_2", "draft_3", "commit"],
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Speculator:
    folder = make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo")
    return make_speculator(load_tiny(folder), max_batch_size=BATCH, room=200)


def begin(spec: Speculator, k: int) -> DecodeState:
    state = make_state(spec, k, BATCH)
    prefilled = prefill(spec, random_prompts(BATCH), max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=1 << 40)
    return state


@pytest.mark.parametrize("k", [0, 1, 3])
def test_iterations_are_counted_and_one_before_them_is_not_timed(spec: Speculator, k: int) -> None:
    runner = EagerRunner(spec, begin(spec, k))
    steps = []
    step = runner.step
    runner.step = lambda batch_size: (steps.append(batch_size), step(batch_size))  # type: ignore
    start = time.perf_counter()
    times = time_iterations(runner, BATCH, 5)
    elapsed = time.perf_counter() - start
    assert len(times) == 5 and steps == [BATCH] * 6
    assert all(each.gpu_s == each.wall_s > 0 for each in times)
    assert sum(each.wall_s for each in times) < elapsed


class Clock:
    """Of a host and a device: launching an iteration takes the one ``host_s``, running it the
    other ``device_s``."""

    def __init__(self, host_s: float, device_s: float) -> None:
        self.host_s, self.device_s = host_s, device_s
        self.now = self.device_done = 0.0

    def step(self, batch_size: int) -> None:
        self.now += self.host_s
        self.device_done = max(self.device_done, self.now) + self.device_s

    def push(self, rows: object) -> SimpleNamespace:
        done = self.device_done
        return SimpleNamespace(wait=lambda: setattr(self, "now", max(self.now, done)))

    def event(self, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.device_done)
        event.elapsed_time = lambda end: (end.at - event.at) * 1e3
        return event


@pytest.mark.parametrize(("host_s", "device_s"), [(5.0, 1.0), (1.0, 5.0)])
@pytest.mark.parametrize("count", [1, 4])
def test_every_iteration_takes_as_long_by_the_wall(
    host_s: float, device_s: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one too, whichever of host and device is the slower."""
    clock = Clock(host_s, device_s)
    monkeypatch.setattr(timing.torch.cuda, "Event", clock.event)
    monkeypatch.setattr(timing, "Reader", lambda rows: clock)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    state = SimpleNamespace(full=SimpleNamespace(last=SimpleNamespace(is_cuda=True)), rows=int)
    runner: Any = SimpleNamespace(state=state, step=clock.step)
    times = time_iterations(runner, BATCH, count)
    assert [each.wall_s for each in times] == [5.0] * count


@pytest.mark.parametrize("k", list(STAGES))
def test_stages_are_the_iteration_taken_apart(spec: Speculator, k: int) -> None:
    """Their sum is never above the wall time around them, and close to it."""
    timer = eager_stages(spec, begin(spec, k), BATCH)
    shares = []
    for _ in range(10):
        start = time.perf_counter()
        stages = timer.time_stages()
        elapsed = time.perf_counter() - start
        assert [*map(str, stages)] == STAGES[k]
        assert min(stages.values()) > 0
        shares.append(sum(stages.values()) / elapsed)
    assert max(shares) <= 1
    assert max(shares) > 0.9  # a busy machine may come between once, not ten times


def test_taking_stages_apart_is_a_real_iteration(spec: Speculator) -> None:
    state = begin(spec, 0)
    before = state.full.seq_len.clone()
    eager_stages(spec, state, BATCH).time_stages()
    assert (state.full.seq_len - before).tolist() == [1] * BATCH
