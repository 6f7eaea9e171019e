"""Each rule says its loss where its cause was planted, and is silent where it was not."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from cgbench.advice.slow_reasons import Loss, slow_reasons
from cgbench.engine.graph_cost import GraphCost
from cgbench.rundir.files import Tables
from cgbench.rundir.schema import Cell, Sample
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.summary import capture_frame, latency_frame, samples_frame
from cgbench.words import Mode, Phase, Scope, Stage
from tests.support.example import make_cell, make_cost, make_samples
from tests.support.recorded import recorded


def reasons(
    *timed: tuple[Cell, float, float],
    costs: Sequence[GraphCost] = (),
    plans: Sequence[dict[str, object]] = (),
) -> dict[str, Loss]:
    """Of cells with their milliseconds and host gaps."""
    samples: list[Sample] = [
        sample
        for cell, taken, gap in timed
        for sample in make_samples(cell, Stage.ITERATION, [taken] * 3, gap_ms=gap)
    ]
    latency = latency_frame([cell for cell, _, _ in timed], samples_frame(samples))
    run = SimpleNamespace(
        tables=Tables(latency=latency, capture=capture_frame(costs, latency)),
        record=SimpleNamespace(accounts=[], limits=None, plans=plans),
    )
    return {loss.rule: loss for loss in slow_reasons(cast(RunDirectory, run))}


def cell(batch_size: int, bucket: int | None, scope: Scope = Scope.ITERATION, k: int = 2) -> Cell:
    return make_cell(
        scope,
        k,
        batch_size,
        bucket=bucket,
        mode=Mode.EAGER if bucket is None else Mode.GRAPH,
        padding_frac=None if bucket is None else (bucket - batch_size) / bucket,
        compile="default",
    )


@pytest.mark.parametrize(
    ("most", "cure"),
    [(10, "--max-num-seqs 12"), (16, "12 among --capture-sizes")],
)
def test_a_batch_above_the_largest_bucket_is_set_beside_replays_of_a_bucket(
    most: int, cure: str
) -> None:
    """The largest bucket, 10, has no time. A graph of 12 takes no longer than two replays of 8."""
    plan = {"spec_tokens": 2, "batch_sizes": [4, 8, 10], "max_batch_size": most}
    found = reasons((cell(8, 8), 2.0, 0.0), (cell(12, None), 9.0, 0.0), plans=[plan])
    assert found.keys() == {"eager batch"}
    assert found["eager batch"].milliseconds == pytest.approx(5.0)
    sentence = found["eager batch"].sentence
    assert "largest bucket holds 10 requests. 2 replays of 8 take 4 ms" in sentence
    assert sentence.endswith(f"4 ms. {cure} captures one")


def test_an_eager_batch_that_replays_would_not_beat_loses_nothing() -> None:
    assert reasons((cell(8, 8), 5.0, 0.0), (cell(12, None), 9.0, 0.0)) == {}


def test_a_recorded_ceiling_of_tokens_is_not_called_one_of_requests() -> None:
    """k = 8: 64 requests are 576 tokens, over the policy's 512, in a run of --max-num-seqs 64."""
    found = slow_reasons(recorded("mimo-7b-surface"))[0]
    assert found.rule == "eager batch"
    assert "the largest bucket holds 56 requests. 2 replays of 32 take" in found.sentence
    assert "64 among --capture-sizes" in found.sentence and "--max-num-seqs" not in found.sentence


def test_padding_is_what_the_bucket_takes_over_the_batch() -> None:
    found = reasons((cell(4, 4), 2.0, 0.0), (cell(5, 8), 4.0, 0.0))
    assert found["padding"].milliseconds == pytest.approx(1.5)
    assert "38% of the rows" in found["padding"].sentence


def test_a_full_bucket_pads_nothing() -> None:
    assert reasons((cell(4, 4), 2.0, 0.0), (cell(8, 8), 4.0, 0.0)) == {}


def test_the_host_gap_is_named_where_one_graph_would_shorten_it() -> None:
    found = reasons((cell(4, 4, Scope.PHASE), 2.0, 0.5))
    assert found["host gap"].milliseconds == pytest.approx(0.5)
    assert "--scopes iteration" in found["host gap"].sentence
    assert reasons((cell(4, 4), 2.0, 0.5)) == {}


def test_launches_are_named_where_compiling_was_left_off() -> None:
    uncompiled = make_cell(Scope.ITERATION, 2, 4, bucket=4)
    costs = [make_cost(Phase.ITERATION, 2, 4, nodes=1000)]
    found = reasons((uncompiled, 2.0, 0.0), costs=costs)
    assert found["launches"].milliseconds == pytest.approx(0.9)
    assert "--compile default" in found["launches"].sentence
    assert reasons((cell(4, 4), 2.0, 0.0), costs=costs) == {}


def test_launches_lose_what_the_kernels_take_and_no_more() -> None:
    """What else is above the default model's tiny floor is not theirs."""
    (found,) = [each for each in slow_reasons(recorded("default-k3")) if each.rule == "launches"]
    assert found.milliseconds == pytest.approx(402 * 0.9e-3)
    assert 0.5 < found.share < 0.7
    assert "402 kernels run one after another, which take 0.9 us each" in found.sentence
    assert "and the floor is 0.00" in found.sentence


def test_a_recorded_mixture_loses_most_to_the_experts_that_drafts_read() -> None:
    found, arithmetic = slow_reasons(recorded("qwen3.5-35b-surface"))
    assert found.rule == "experts"
    assert found.milliseconds == pytest.approx(6.85, abs=0.01)
    assert "185 experts a layer, and 57 at k = 0" in found.sentence
    assert arithmetic.rule == "arithmetic"
    assert arithmetic.milliseconds == pytest.approx(0.731, abs=0.001)


def test_a_recorded_dense_model_waits_for_arithmetic_at_a_large_batch() -> None:
    (found,) = slow_reasons(recorded("mimo-7b-k3-compiled"))
    assert found.rule == "arithmetic"
    assert found.sentence.startswith("1.44 of 10.4 ms at batch size 64, k = 3")


def test_a_loss_too_small_to_matter_is_not_said() -> None:
    assert reasons((cell(4, 4, Scope.PHASE), 2.0, 0.01)) == {}
