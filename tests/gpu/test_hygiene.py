"""Graph hygiene on a device: the engine as it is holds; each planted fault is told."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cgbench.checks.findings import Verdict
from cgbench.checks.hygiene import run
from cgbench.checks.subject import Subject, make_subject
from cgbench.engine.deployment import capture
from cgbench.engine.runner import GraphRunner
from cgbench.kernels.attention_input import LayerKv
from cgbench.measure.setup import make_deployment
from cgbench.words import Scope
from cgbench.workload.load import Workload
from tests.support import audited
from tests.support.options import make_options
from tests.support.tiny import load_tiny, make_checkpoint, random_prompts

pytestmark = pytest.mark.gpu

K = 3


@pytest.fixture(params=[Scope.PHASE, Scope.ITERATION])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """One graph scope a test, so that a fault is told of that one."""
    model = load_tiny(make_checkpoint(tmp_path, "mimo", seed=3), device="cuda")
    options = make_options(
        spec_tokens=(0, K), batch_sizes=(8,), max_new_tokens=24, scopes=(request.param,)
    )
    prompts = tuple(map(tuple, random_prompts(8)))
    workload = Workload("a test", prompts)
    deployment = make_deployment(options, model, workload, "triton")
    deployment = capture(deployment, lambda: None)
    yield make_subject(deployment, prompts, options.max_new_tokens, seed=0)
    deployment.release()


def told(subject: Subject) -> str:
    """What the check says is wrong."""
    finding = run(subject)
    assert finding.verdict is Verdict.WRONG and finding.difference is not None
    return finding.difference.text


def test_the_engine_as_it_is_holds(subject: Subject) -> None:
    finding = run(subject)
    assert finding.verdict is Verdict.HOLDS, finding.difference
    assert finding.figures["graphs"] == sum(len(g.costs) for g in subject.graph_sets.values())
    assert finding.figures["addresses"] > 0


@pytest.mark.parametrize("name", ["last", "drafts", "seq_len", "slot_of_row", "hidden", "result"])
def test_a_state_buffer_reassigned_after_the_capture(subject: Subject, name: str) -> None:
    state = subject.states[K]
    state.full = replace(state.full, **{name: getattr(state.full, name).clone()})
    assert f"state.{name} was reassigned" in told(subject)


def test_recurrent_state_reassigned_after_the_capture(tmp_path: Path) -> None:
    deployment = audited.make_deployment(
        make_checkpoint(tmp_path, "qwen3_5", seed=3),
        device="cuda",
        attention="triton",
        scopes=(Scope.ITERATION,),
    )
    deployment = capture(deployment, lambda: None)
    assert deployment.spec.cache.recurrent is not None
    layers = deployment.spec.cache.recurrent.layers
    layers[0] = replace(layers[0], matrix=layers[0].matrix.clone())
    assert "recurrent.0.matrix was reassigned" in told(audited.subject_of(deployment))
    deployment.release()


def test_views_of_a_reassigned_buffer(subject: Subject) -> None:
    """The whole buffer stays; what ``rows`` hands out for a bucket is another."""
    state = subject.states[K]
    rows = state.rows(4)
    state._rows[4] = replace(rows, drafts=rows.drafts.clone())
    assert "state.drafts" in told(subject)


def test_a_kv_tensor_reassigned_after_the_capture(subject: Subject) -> None:
    kv = subject.spec.cache.layers[1]
    subject.spec.cache.layers[1] = LayerKv(kv.keys, kv.values.clone())
    assert "kv.1.values was reassigned" in told(subject)


def test_a_weight_reassigned_after_the_capture(subject: Subject) -> None:
    assert subject.spec.head is not None
    name, weight = next(iter(subject.spec.head.named_parameters()))
    weight.data = weight.data.clone()
    assert f"head.{name} was reassigned" in told(subject)


class OtherBucket(GraphRunner):
    """Replays the bucket beside the one that the plan says."""

    def __init__(self, right: GraphRunner, beside: int) -> None:
        self.__dict__.update(right.__dict__)
        self.beside = beside

    def step(self, batch_size: int) -> None:
        sizes = self.plan.batch_sizes
        index = sizes.index(self.num_rows(batch_size)) + self.beside
        self.graphs.replay(sizes[min(max(index, 0), len(sizes) - 1)])


@pytest.mark.parametrize(("beside", "words"), [(1, "was computed too"), (-1, "was not computed")])
def test_another_bucket_replayed(subject: Subject, beside: int, words: str) -> None:
    for key, right in subject.runners.items():
        if isinstance(right, GraphRunner):
            subject.runners[key] = OtherBucket(right, beside)
    assert words in told(subject)


def test_a_bucket_lost(subject: Subject) -> None:
    next(iter(subject.graph_sets.values()))._graphs.pop(2)
    assert "where the plan is (8, 4, 2, 1)" in told(subject)
