"""``cgbench plan``'s output, whole, and the costs that it takes from a run."""

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cgbench.errors import RunDirectoryError
from cgbench.planning import POLICIES, Concurrency, PlanRequest
from cgbench.planning.study import Outcome, requests_for, savings, study
from cgbench.rundir.run_costs import read_costs
from cgbench.rundir.store import RunDirectory
from cgbench.tables.plan import DEFINITIONS, markdown, terminal
from cgbench.tables.plan_rows import BUCKET_COLUMNS, plan_csv, plan_json
from cgbench.words import Phase, Scope, Stage
from tests.support.example import make_cell, make_cost, make_group, make_record, make_samples


def studied(policies: str, most: int = 6, k: int = 3, **fields: object) -> list[Outcome]:
    base = PlanRequest(0, most, "explicit", **fields)
    return study(requests_for(base, policies.split(","), [k]))


ONE = f"""\
### Graphs by phase, scaled, k = 3, max_num_seqs 6, constant:3

| phase | tokens a request | graphs | eager [req] | eager share | mean padding |
| --- | ---: | ---: | ---: | ---: | ---: |
| verify | 4 | 4 |  | 0.0 % | 25.0 % |
| draft 1 | 4 | 4 |  | 0.0 % | 25.0 % |
| drafts 2..k | 1 | 4 |  | 0.0 % | 25.0 % |
| in all |  | 12 |  | 0.0 % |  |

- memory of all graphs: about 53 MiB, stated model

### Buckets of verify, scaled, k = 3, max_num_seqs 6, constant:3

| bucket [req] | tokens | serves [req] | worst padding | mean padding | share |
| --- | ---: | ---: | ---: | ---: | ---: |
| 1 | 4 | 1 | 0.0 % | 0.0 % | 0.0 % |
| 2 | 8 | 2 | 0.0 % | 0.0 % | 0.0 % |
| 4 | 16 | 3-4 | 25.0 % | 25.0 % | 100.0 % |
| 6 | 24 | 5-6 | 16.7 % | 8.3 % | 0.0 % |

- 4 graphs, mean padding 25.0 %, 0 batch sizes eager, 0.0 % of the workload, expected cost 16 tokens

{DEFINITIONS}"""


def test_one_plan() -> None:
    outcomes = studied("scaled", concurrency=Concurrency.parse("constant:3"))
    assert markdown(outcomes, savings(outcomes)) == ONE


def test_several_plans_with_a_refusal() -> None:
    outcomes = studied("sglang-0.5.23,fastdeploy-2.4,optimal", 7, 2, max_graphs=2)
    text = markdown(outcomes, savings(outcomes))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # Two graphs for 1..7, alike: 4 and 7 cost (4 * 12 + 3 * 21) / 7, and 3 and 7 as much.
    assert rows[2:5] == [
        "| sglang-0.5.23 | 7 | 7 | 0 | 0.0 % | 0.0 % | 0.0 % | 12 |",
        "| fastdeploy-2.4 | refused |  |  |  |  |  |  |",
        "| optimal | 2 | 7 | 0 | 0.0 % | 27.6 % | 75.0 % | 15.86 |",
    ]
    assert "- refused: fastdeploy-2.4: an odd token count: --max-num-seqs 7" in text
    assert rows[-1] == "| sglang-0.5.23 | -32.1 % | +5 | 0.0 % | 7 |"
    assert "- optimal buckets [req]: 4, 7" in text


def test_savings_at_equal_terms() -> None:
    """vllm-0.18 lists 1, 2 and 4, and 5 to 7 run eager: one bucket of 7 is no slower."""
    outcomes = studied("vllm-0.18,optimal", 7, 0, max_graphs=3)
    [saving] = savings(outcomes)
    listed, best = outcomes
    assert listed.plan and listed.plan.batch_sizes == (1, 2, 4)
    assert listed.cost == pytest.approx((1 + 2 + 4 + 4 + 25 + 30 + 35) / 7)
    assert best.cost is not None and listed.cost is not None
    assert saving.time_frac == pytest.approx(1 - best.cost / listed.cost)
    assert saving.time_frac == pytest.approx(saving.time_frac_at_same_graphs)
    assert (saving.graphs, saving.graphs_at_same_time) == (0, 1)


def test_terminal_has_every_row_and_folds_no_line() -> None:
    outcomes = studied("all", 256)
    console = Console(width=200, record=True, file=io.StringIO())
    for part in terminal(outcomes, savings(outcomes), console.width):
        console.print(part, soft_wrap=True)
    text = console.export_text()
    for outcome in outcomes:
        assert f" {outcome.request.policy} " in text
    assert "[req]" in text
    assert any(len(line) > 120 and line.startswith("optimal buckets") for line in text.splitlines())


def test_csv_has_a_row_a_bucket_and_a_row_a_hole() -> None:
    outcomes = studied("vllm-0.18,fastdeploy-2.4", 7, 2)
    rows = list(csv.DictReader(io.StringIO(plan_csv(outcomes))))
    assert tuple(rows[0]) == BUCKET_COLUMNS
    assert [(row["mode"], row["serves_from"]) for row in rows] == [
        ("graph", "1"),
        ("graph", "2"),
        ("graph", "3"),
        ("graph", "4"),
        ("eager", "7"),
        ("refused", ""),
    ]
    assert "odd token count" in rows[-1]["note"]


def test_json_has_what_the_table_has() -> None:
    outcomes = studied("scaled,optimal", max_graphs=2)
    found = json.loads(plan_json(outcomes, savings(outcomes)))
    scaled, best = found["plans"]
    assert scaled["capture_tokens"] == [4, 8, 16, 24]
    assert (scaled["policy"], scaled["spec_tokens"], scaled["graphs"]) == ("scaled", 3, 4)
    assert [row["batch_size"] for row in scaled["buckets"]] == [1, 2, 4, 6]
    assert best["batch_sizes"] == [3, 6]
    assert found["savings"][0]["graphs"] == 2


def written_run(path: Path) -> Path:
    """The example run: 2 and 4 requests, both in the bucket of 4, eager 20 ms, graph 5 ms."""
    run = RunDirectory.create(path, make_record())
    run.write_capture([make_cost(Phase.ITERATION), make_cost(Phase.VERIFY, pool_bytes=9)])
    for batch_size in (2, 4):
        group = make_group(batch_size)
        run.write_group(group.cells, group.samples)
    return path


def test_costs_of_a_run(tmp_path: Path) -> None:
    costs = read_costs(written_run(tmp_path / "run"), 2)
    assert costs.unit == "ms"
    assert costs.graph.points == ((4, 5.0),)
    assert costs.eager.points == ((2, 20.0), (4, 20.0))
    assert costs.memory_bytes and costs.memory_bytes.points == ((4, 1024 + 512),)
    assert costs.capture_s and costs.capture_s(4) == pytest.approx(0.032)


def test_phase_graphs_of_a_bucket_are_taken_together(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", make_record())
    run.write_capture([make_cost(phase) for phase in (Phase.VERIFY, Phase.DRAFT_FIRST)])
    cells = [make_cell(Scope.EAGER, 2), make_cell(Scope.PHASE, 2)]
    samples = [make_samples(cell, Stage.ITERATION, [8, 9, 10], gap_ms=1) for cell in cells]
    run.write_group(cells, [row for rows in samples for row in rows])
    costs = read_costs(tmp_path / "run", 2)
    assert costs.memory_bytes and costs.memory_bytes(4) == 2 * (1024 + 512)


def test_costs_that_were_not_measured(tmp_path: Path) -> None:
    path = written_run(tmp_path / "run")
    with pytest.raises(RunDirectoryError) as caught:
        read_costs(path, 3)
    assert str(caught.value) == (
        f"--costs {path}: latency.csv has no captured iteration at --spec-tokens 3. "
        "Measure it with cgbench run"
    )


def test_optimal_alone_is_held_against_every_engine() -> None:
    against = {saving.policy for saving in savings(studied("optimal", 64, 3, max_graphs=8))}
    assert against == POLICIES.keys() - {"optimal", "exact", "explicit"}


@pytest.mark.parametrize("width", [80, 90])
def test_a_narrow_terminal_cuts_no_name_and_folds_no_number(width: int) -> None:
    outcomes = studied("all", 64)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for part in terminal(outcomes, savings(outcomes), width):
            console.print(part)
    text = capture.get()
    assert "…" not in text
    for outcome in outcomes:
        assert f" {outcome.request.policy} " in text
    assert all(line.strip() != "%" for line in text.splitlines())


def test_a_share_is_rounded_alike_wherever_it_comes_from() -> None:
    """5 to 8 in a bucket of 8: 18.75 %, but for the sums' last bit; the same served alone."""
    among = markdown(studied("scaled", 10), [])
    alone = markdown(studied("scaled", 8, concurrency=Concurrency.uniform(5, 8)), [])
    for text in (among, alone):
        assert "| 8 | 32 | 5-8 | 37.5 % | 18.8 % |" in text


def test_a_loss_that_rounds_to_nothing_has_no_sign() -> None:
    outcomes = studied("optimal,vllm-0.18", 64)
    [saving] = savings(outcomes)
    assert -0.0005 < saving.time_frac < 0
    assert "| vllm-0.18 | 0.0 % |" in markdown(outcomes, [saving])


def test_what_optimal_saves_on_vllm_at_100_requests_without_drafts() -> None:
    """The figure of docs/capture-sizes.md."""
    outcomes = studied("vllm-0.33,optimal", 100, 0)
    text = markdown(outcomes, savings(outcomes))
    assert "| 0 | 0.0 % | 8.4 % | 43.8 % | 53.71 |" in text
    assert "| vllm-0.33 | 4.0 % |" in text


def test_a_policys_name_is_said_once_a_line() -> None:
    outcomes = studied("nano-vllm,fastdeploy-2.4,scaled", 171, 2)
    lines = [line for line in markdown(outcomes, []).splitlines() if line.startswith("- ")]
    assert len(lines) > 3
    for name in ("nano-vllm", "fastdeploy-2.4", "scaled"):
        assert all(line.count(f"{name}: {name}") == 0 for line in lines)
    assert "- refused: fastdeploy-2.4: an odd token count" in "\n".join(lines)


def test_one_of_a_thing_is_no_plural() -> None:
    outcomes = studied("nano-vllm,optimal", 1, 3)
    assert "What optimal saves, k = 3, 1 graph\n" in markdown(outcomes, savings(outcomes))
    assert "- 1 graph, mean padding" in markdown(outcomes[:1], [])
    one_eager = markdown(studied("vllm-0.18", 20, 2), [])
    assert "- 9 graphs, mean padding" in one_eager and ", 1 batch size eager, 5.0 %" in one_eager
