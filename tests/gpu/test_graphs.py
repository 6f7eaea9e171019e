"""Captured graphs on a device: the same tokens as eager, no syncs, no growth, and the plan's
buckets, all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cgbench.engine.acceptance import AcceptanceRule, Sampled, Synthetic
from cgbench.engine.graphs import GraphSet, capture_plan
from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.readback import Reader
from cgbench.engine.runner import EagerRunner, GraphRunner, Runner
from cgbench.engine.state import DecodeState
from cgbench.errors import CaptureError, OutOfMemoryError
from cgbench.planning import PlanRequest, plan
from cgbench.words import Phase, Scope
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

pytestmark = pytest.mark.gpu

MAX_BATCH = 64
MAX_NEW_TOKENS = 24
ROOM = 24 + MAX_NEW_TOKENS + 2 * 8
K = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo", seed=3)


@pytest.fixture(scope="module", params=["triton", "sdpa"])
def spec(request: pytest.FixtureRequest, checkpoint: Path) -> Speculator:
    model = load_tiny(checkpoint, device="cuda")
    return make_speculator(model, max_batch_size=MAX_BATCH, room=ROOM, attention=request.param)


@pytest.fixture(scope="module")
def state(spec: Speculator) -> DecodeState:
    return make_state(spec, K, MAX_BATCH)


@pytest.fixture(scope="module", params=[Scope.PHASE, Scope.ITERATION])
def graphs(
    request: pytest.FixtureRequest, spec: Speculator, state: DecodeState
) -> Iterator[GraphSet]:
    graph_set = capture_plan(spec, state, PLAN, request.param)
    yield graph_set
    graph_set.release()


PLAN = plan(PlanRequest(spec_tokens=K, max_batch_size=MAX_BATCH))


def decode(spec: Speculator, runner: Runner, prompts: list[list[int]]) -> list[list[int]]:
    return decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=512).token_ids


def test_every_bucket_and_padding_equals_plain_greedy(
    checkpoint: Path, spec: Speculator, state: DecodeState, graphs: GraphSet
) -> None:
    prompts = random_prompts(MAX_BATCH)
    model = reference_model(checkpoint).to("cuda")
    expected = greedy_reference(model, prompts, MAX_NEW_TOKENS)
    eager = EagerRunner(spec, state)
    captured = GraphRunner(spec, state, PLAN, graphs)
    for bucket in PLAN.batch_sizes:
        for batch_size in {bucket, max(1, bucket - 1), max(1, bucket - 3)}:
            wave = prompts[:batch_size]
            assert decode(spec, captured, wave) == expected[:batch_size], batch_size
        assert decode(spec, eager, prompts[:bucket]) == expected[:bucket], bucket


@pytest.mark.parametrize(
    "rule",
    [
        Synthetic((0.85, 0.6, 0.4)),
        Sampled(),
        Sampled(temperature=0.8, top_k=40, top_p=0.95),
        Sampled(top_p=0.9),
        Sampled(temperature=0.8, drafts="greedy"),
    ],
    ids=str,
)
def test_draws_are_the_same_in_every_scope(checkpoint: Path, rule: AcceptanceRule) -> None:
    """The draws come from inside the graph, from the seed that decoding begins with."""
    model = load_tiny(checkpoint, device="cuda")
    spec = make_speculator(model, max_batch_size=8, room=ROOM, attention="triton", accept=rule)
    state = make_state(spec, K, 8)
    small = plan(PlanRequest(spec_tokens=K, max_batch_size=8))
    runners: list[Runner] = [EagerRunner(spec, state)]
    for scope in (Scope.PHASE, Scope.ITERATION):
        runners.append(GraphRunner(spec, state, small, capture_plan(spec, state, small, scope)))
    # The second wave begins with what the first one left in the buffers.
    tokens = [
        [decode(spec, runner, random_prompts(7, seed=wave)) for wave in range(2)]
        for runner in runners
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len({tuple(each) for each in tokens[0][0]}) == 7


def test_synthetic_rates_hold_across_replays(checkpoint: Path) -> None:
    """Rates within 1 %, and requests as well as iterations independent, drawn inside the graph."""
    rates = (0.85, 0.6, 0.4)
    model = load_tiny(checkpoint, device="cuda")
    spec = make_speculator(
        model, max_batch_size=64, room=ROOM, attention="triton", accept=Synthetic(rates)
    )
    state = make_state(spec, K, 64)
    graphs = capture_plan(
        spec, state, plan(PlanRequest(spec_tokens=K, max_batch_size=64)), Scope.ITERATION
    )
    prefilled = prefill(spec, random_prompts(64), max_num_tokens=512)
    begin_decoding(spec, state, prefilled, tokens_left=1 << 40, ignore_eos=True)
    at_start = state.full.seq_len.clone()
    kept = torch.empty(4000, 64, dtype=torch.long, device="cuda")
    for replay in range(len(kept)):
        state.full.seq_len.copy_(at_start)
        graphs.replay(64)
        kept[replay] = state.full.num_accepted
    for j, rate in enumerate(rates):
        assert (kept > j).float().mean().item() == pytest.approx(rate, rel=0.01)
    across_requests = torch.corrcoef(kept.T.float()) - torch.eye(64, device="cuda")
    # 4,000 draws: a correlation of independent ones has a deviation of 0.016.
    assert across_requests.abs().max().item() < 0.09
    first, second = kept[:-1].float().flatten(), kept[1:].float().flatten()
    across_replays = torch.corrcoef(torch.stack([first, second]))[0, 1]
    assert across_replays.abs().item() < 0.01


def test_every_planned_bucket_is_captured_large_to_small(graphs: GraphSet) -> None:
    assert graphs.batch_sizes == tuple(reversed(PLAN.batch_sizes))
    phases = [Phase.ITERATION] if graphs.scope is Scope.ITERATION else list(Phase)[:3]
    ledger = [(cost.bucket, cost.phase) for cost in graphs.costs]
    assert ledger == [(size, phase) for size in graphs.batch_sizes for phase in phases]
    assert all(cost.num_tokens == cost.bucket * (K + 1) for cost in graphs.costs)
    assert all(cost.nodes is None or cost.nodes > 0 for cost in graphs.costs)


def test_replay_syncs_with_nothing_and_allocates_nothing(
    spec: Speculator, state: DecodeState, graphs: GraphSet
) -> None:
    prefilled = prefill(spec, random_prompts(5), max_num_tokens=512)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    reader = Reader(state.full)
    torch.cuda.synchronize()
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            graphs.replay(8)
            reader.push(state.rows(5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations


def test_memory_is_constant_over_ten_thousand_replays(state: DecodeState, graphs: GraphSet) -> None:
    state.clear()
    graphs.replay(1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info(), torch.cuda.memory_reserved()
    for _ in range(10_000):
        graphs.replay(1)
    torch.cuda.synchronize()
    assert (torch.cuda.mem_get_info(), torch.cuda.memory_reserved()) == before


def test_a_bucket_with_other_tokens_is_an_error(spec: Speculator, state: DecodeState) -> None:
    other_k = plan(PlanRequest(spec_tokens=1, max_batch_size=4))
    with pytest.raises(CaptureError, match="holds the forwards"):
        capture_plan(spec, state, other_k, Scope.ITERATION)


def test_out_of_memory_names_the_bucket(spec: Speculator, state: DecodeState) -> None:
    """Memory is limited to what is in use; the logits of 64 rows cannot be allocated."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        with pytest.raises(OutOfMemoryError, match=r"64 requests \(256 tokens\): lower"):
            capture_plan(spec, state, PLAN, Scope.ITERATION)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    graphs = capture_plan(spec, state, plan(PlanRequest(K, 2)), Scope.ITERATION)
    graphs.release()
