"""A deployment stays as it was made. Graphs make a new one, and a failed capture leaves none."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from cgbench.engine import deployment as module
from cgbench.engine.deployment import Deployment, capture, num_graph_buckets
from cgbench.engine.graphs import GraphSet
from cgbench.engine.runner import GraphRunner
from cgbench.engine.state import DecodeState
from cgbench.errors import CaptureError
from cgbench.planning import CapturePlan
from cgbench.words import Scope
from tests.support.audited import BUCKETS, make_deployment
from tests.support.tiny import make_checkpoint

KS = (0, 3)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One that asks for graphs, on a CPU."""
    folder = make_checkpoint(tmp_path_factory.mktemp("deployment"), "mimo")
    made = make_deployment(folder, spec_tokens=KS)
    return replace(made, options=replace(made.options, scopes=tuple(Scope)))


class CountedGraphs(GraphSet):
    """No graphs, and how often they were released."""

    released = 0

    def release(self) -> None:
        self.released += 1


class Captures:
    """Stands for ``capture_plan``; ``fails_at`` is the number of the capture that cannot be."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.made: list[CountedGraphs] = []

    def __call__(
        self,
        spec: object,
        state: DecodeState,
        plan: CapturePlan,
        scope: Scope,
        on_bucket: Callable[[Any], None],
    ) -> GraphSet:
        if len(self.made) == self.fails_at:
            raise CaptureError("cannot be captured")
        for bucket in plan.buckets:
            on_bucket(bucket)
        self.made.append(CountedGraphs(scope, state.spec_tokens, {}))
        return self.made[-1]


@pytest.mark.parametrize("name", [field.name for field in fields(Deployment)])
def test_nothing_is_set_from_outside(deployment: Deployment, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(deployment, name, None)


@pytest.mark.parametrize("name", ["plans", "states", "runners", "graph_sets"])
def test_what_it_holds_by_k_cannot_be_changed(deployment: Deployment, name: str) -> None:
    with pytest.raises(TypeError):
        getattr(deployment, name)[3] = None


def test_a_capture_makes_a_new_deployment(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures, buckets = Captures(), []
    monkeypatch.setattr(module, "capture_plan", captures)
    captured = capture(deployment, lambda: buckets.append(None))
    assert set(deployment.runners) == {(k, Scope.EAGER) for k in KS} and not deployment.graph_sets
    assert set(captured.runners) == {(k, scope) for k in KS for scope in Scope}
    assert set(captured.graph_sets) == {key for key in captured.runners if key[1] != Scope.EAGER}
    assert len(buckets) == num_graph_buckets(deployment) == len(KS) * 2 * len(BUCKETS)
    for key, graphs in captured.graph_sets.items():
        runner = captured.runners[key]
        assert isinstance(runner, GraphRunner) and runner.graphs is graphs
    with pytest.raises(TypeError):
        captured.runners[3, Scope.PHASE] = captured.runners[3, Scope.EAGER]  # type: ignore[index]
    captured.release()
    assert [graphs.released for graphs in captures.made] == [1, 1, 1, 1]


def test_a_capture_that_fails_leaves_no_graph(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    captures = Captures(fails_at=2)
    monkeypatch.setattr(module, "capture_plan", captures)
    with pytest.raises(CaptureError):
        capture(deployment, lambda: None)
    assert [graphs.released for graphs in captures.made] == [1, 1]
    assert not deployment.graph_sets


def test_compiling_makes_a_new_deployment_that_says_how_long_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cgbench.compile import decode

    made = make_deployment(make_checkpoint(tmp_path, "mimo"))
    monkeypatch.setattr(decode, "compile_forwards", lambda target, head: None)
    compiled = decode.compiled(made)
    assert made.compile_s is None and compiled.compile_s is not None
    assert replace(compiled, compile_s=None) == made
