"""The estimate of graph memory, against every run that was recorded."""

from pathlib import Path
from statistics import median

import pytest

from cgbench.planning import PlanRequest, plan
from cgbench.planning.graph_memory import STATED, GraphMemory, LedgerRow, fitted, measured_bytes
from cgbench.planning.phases import PhaseGraphs, PhasePlan, phases_of
from cgbench.planning.plan import Bucket
from cgbench.planning.plan_request import CaptureMode
from cgbench.rundir.run_costs import read_graph_memory, read_ledger
from cgbench.words import Phase

RESULTS = Path(__file__).parents[2] / "results" / "h200"
# The runs that docs/plan.md speaks of, each with four sets of graphs or more. The shipped model and
# SmolLM2 have few small kernels. Their graphs fit a page or two.
RUNS = (
    "deepseek-v3-6l-k3",
    "ernie-4.5-21b-a3b-k3",
    "gemma-3-1b-k3",
    "llama-3.1-8b-k3",
    "mimo-7b-k3",
    "mimo-7b-k3-compiled",
    "qwen3-0.6b-k3",
    "qwen3-32b-k3",
    "qwen3-8b-k3",
    "qwen3.5-0.8b-k0123",
    "qwen3.5-35b-surface",
    "tp/qwen3-32b-tp1",
)

Key = tuple[int, bool]


def sets_of(rows: list[LedgerRow]) -> dict[Key, list[LedgerRow]]:
    """Graphs that shared a pool."""
    found: dict[Key, list[LedgerRow]] = {}
    for row in rows:
        found.setdefault((row.spec_tokens, row.phase is Phase.ITERATION), []).append(row)
    return found


def planned(rows: list[LedgerRow]) -> PhasePlan:
    """The graphs of a recorded set, as a plan has them."""
    base = PlanRequest(0, 1, "exact")
    phases = []
    for phase in sorted({row.phase for row in rows}):
        tokens = sorted(row.num_tokens for row in rows if row.phase is phase)
        phases.append(PhaseGraphs(phase, 1, 1, tuple(Bucket(n, n) for n in tokens)))
    return PhasePlan(plan(base), tuple(phases))


def errors(name: str) -> list[tuple[float, float]]:
    """Of each set: the stated model's error, and that of a model of the run's other sets."""
    rows = read_ledger(RESULTS / name)
    found = []
    for key, alike in sets_of(rows).items():
        others = [row for row in rows if (row.spec_tokens, row.phase is Phase.ITERATION) != key]
        measured = measured_bytes(alike)
        models = (STATED, fitted(others, "others"))
        found.append(tuple(model.of(planned(alike)) / measured - 1 for model in models))
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_runs_own_numbers_give_a_list_that_it_did_not_capture(name: str) -> None:
    assert max(abs(own) for _, own in errors(name)) < 0.2


def test_the_errors_that_the_documentation_states() -> None:
    every = [each for name in RUNS for each in errors(name)]
    stated, own = ([abs(error[column]) for error in every] for column in (0, 1))
    assert round(median(stated), 2) == 0.10
    assert round(median(own), 2) == 0.06
    assert max(own) < 0.19


def test_one_set_of_graphs_tells_too_little_of_another() -> None:
    """A run of one scope at k = 0 and 3 has two sets, and draft graphs are in one of them alone."""
    (_, without_drafts), (_, with_drafts) = errors("qwen3-30b-a3b-k3")
    assert (round(without_drafts, 2), round(with_drafts, 2)) == (0.52, -0.62)


def test_by_hand() -> None:
    """S = 2, k = 2: 2 graphs of verify and 4 of drafts, the largest of 6 tokens."""
    request = PlanRequest(2, 2, "exact")
    found = phases_of(request, plan(request))
    model = GraphMemory(100, 10, 7, 1, "by hand")
    assert model.of(found) == 100 + 10 * 6 + 7 * 2 + 1 * 4


def test_no_graph_takes_no_memory() -> None:
    request = PlanRequest(2, 2, "exact", capture_mode=CaptureMode.NONE)
    assert STATED.of(phases_of(request, plan(request))) == 0


def test_mixed_batches_count_as_the_targets() -> None:
    request = PlanRequest(0, 2, "vllm-0.33")
    found = phases_of(request, plan(request))
    assert found.mixed_tokens == (1, 2, 4)
    assert GraphMemory(0, 0, 1, 0, "x").of(found) == 2 + 3


def test_two_largest_sizes_give_the_pools_line() -> None:
    rows = [
        LedgerRow(Phase.VERIFY, 0, 8, 30.0, 2.0),
        LedgerRow(Phase.VERIFY, 0, 4, 0.0, 4.0),
        LedgerRow(Phase.VERIFY, 3, 32, 54.0, 0.0),
    ]
    found = fitted(rows, "run")
    assert (found.pool_bytes, found.bytes_per_token) == (22.0, 1.0)
    assert found.target_graph_bytes == 2.0
    assert found.draft_graph_bytes == STATED.draft_graph_bytes


def test_a_run_says_where_its_model_is_from() -> None:
    path = RESULTS / "mimo-7b-k3"
    assert read_graph_memory(path).source == f"measured in {path}"
