"""``--nvtx``: the ranges a profiler would see, and none without it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cgbench.engine import nvtx
from cgbench.engine.nvtx import NvtxEagerRunner, NvtxGraphRunner
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner, Runner
from cgbench.planning import PlanRequest, plan
from cgbench.words import Phase, Scope
from tests.support.command import cgbench
from tests.support.tiny import (
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is pushed, indented by its depth; it fails where more is popped than pushed."""
    open_: list[str] = []
    seen: list[str] = []

    def push(name: str) -> None:
        seen.append("  " * len(open_) + name)
        open_.append(name)

    fake = SimpleNamespace(range_push=push, range_pop=open_.pop)
    monkeypatch.setattr(nvtx, "nvtx", fake)
    seen.append("")
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "mimo")


def step(kind: type[EagerRunner], folder: Path, spec_tokens: int) -> torch.Tensor:
    """Two iterations; returns the last one's result."""
    spec = make_speculator(load_tiny(folder), max_batch_size=2, room=64)
    runner: Runner = kind(spec, make_state(spec, spec_tokens, 2))
    begin_decoding(spec, runner.state, prefill(spec, random_prompts(2), 1 << 20), tokens_left=30)
    runner.step(2)
    runner.step(2)
    return runner.state.full.result.clone()


@pytest.mark.parametrize(
    ("k", "stages"),
    [
        (0, ["verify", "accept", "commit"]),
        (3, ["verify", "accept", "draft_1", "draft_2", "draft_3", "commit"]),
    ],
)
def test_every_stage_is_a_range_and_they_follow_one_another(
    folder: Path, ranges: list[str], k: int, stages: list[str]
) -> None:
    marked = step(NvtxEagerRunner, folder, k)
    assert ranges[1:] == stages * 2
    assert torch.equal(marked, step(EagerRunner, folder, k))
    assert ranges[1:] == stages * 2  # the plain runner marks nothing


def test_every_replay_is_a_range_with_its_bucket(folder: Path, ranges: list[str]) -> None:
    spec = make_speculator(load_tiny(folder), max_batch_size=6, room=64)
    graph = SimpleNamespace(replay=lambda: ranges.append("replayed"))
    costs = [SimpleNamespace(phase=p, bucket=4, num_tokens=8) for p in list(Phase)[:3]]
    graphs: Any = SimpleNamespace(
        scope=Scope.PHASE,
        captured=lambda bucket: [SimpleNamespace(cost=c, graph=graph) for c in costs],
    )
    planned = plan(PlanRequest(1, 6, "explicit", (4,), "requests"))
    runner = NvtxGraphRunner(spec, make_state(spec, 1, 6), planned, graphs)
    runner.step(3)
    of_phase = [f"replay {c.phase}, 4 requests, 8 tokens" for c in costs]
    assert ranges[1:] == [text for name in of_phase for text in (name, "replayed")]
    ranges.clear()
    runner.step(6)  # above the largest bucket: eager, stage by stage
    assert ranges == ["verify", "accept", "draft_1", "commit"]


def test_on_a_cpu_it_is_refused() -> None:
    done = cgbench("run", "--device", "cpu", "--nvtx")
    done.refused(3, "--nvtx", "--device cuda")
