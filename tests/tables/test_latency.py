"""The tables that people and programs read, whole."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from cgbench.rundir.summary import latency_frame, samples_frame
from cgbench.tables.latency import DEFINITIONS, latency_markdown, latency_table, to_json
from cgbench.words import Mode, Scope, Stage
from tests.support.example import make_cell, make_group, make_record, make_samples

MARKDOWN = f"""\
# cgbench run: tiny (random weights)

- head own, device cuda, dtype bfloat16, attention triton, compile off, acceptance greedy, \
tp_size 1, context_len 256, l2 warm, routing model
- python: 3.11.7
- gpu: NVIDIA H200
- warning: 513 tokens are not a multiple of 3

```
cgbench run preset:tiny --spec-tokens 0,2 --batch-sizes 2,4 --seed 0 \
--max-new-tokens 64 --ignore-eos
```

| scope | k | batch [req] | bucket [req] | iteration p50 [ms] | TPOT [ms] | p99 [ms] | floor share \
| verify [ms] | draft [ms] | host gap [ms] | accept length | tok/s | vs eager | vs no spec \
| status |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
| eager | 0 | 2 |  | 10.000 | 11.000 | 11.960 |  |  |  | 1.000 | 1.00 | 181.8 | 1.00x | 1.00x | ok |
| eager | 2 | 2 |  | 20.000 | 11.000 | 21.960 |  |  |  | 2.000 | 2.00 | 181.8 | 1.00x | 1.00x | ok |
| iteration | 0 | 2 | 4 | 5.000 | 5.500 | 5.980 |  |  |  \
| 0.500 | 1.00 | 363.6 | 2.00x | 1.00x | ok |
| iteration | 2 | 2 | 4 | 5.000 | 2.750 | 5.980 | 25.0% | 3.000 | 2.000 \
| 0.500 | 2.00 | 727.3 | 4.00x | 2.00x | ok |
| phase | 2 | 2 | 4 |  |  |  |  |  |  |  |  |  |  |  | oom |

{DEFINITIONS}"""


def frame_of(batch_size: int) -> pd.DataFrame:
    group = make_group(batch_size)
    return latency_frame(group.cells, samples_frame(group.samples))


def rendered(frame: pd.DataFrame, title: str, width: int = 200, *, is_wide: bool = True) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(latency_table(frame, title, width, is_wide=is_wide))
    return capture.get()


def test_a_setting_that_most_runs_have_alike_is_told_where_it_is_another() -> None:
    frame = frame_of(2)
    assert "quant" not in latency_markdown(frame, make_record())
    # A row without drafts has the column's default.
    modules = frame["spec_tokens"].map(lambda k: 3 if k else 1)
    assert set(modules) == {1, 3}
    told = latency_markdown(frame.assign(quant="w8a16", mtp_modules=modules), make_record())
    assert "routing model, quant w8a16, mtp_modules 3\n" in told


def test_what_ran_a_mixture_is_told_where_it_was_recorded() -> None:
    record = make_record()
    assert record.mixture_words is None
    record.model.update(experts_path="cgbench", router_path="cgbench and transformers")
    told = latency_markdown(frame_of(2), record)
    line = "- mixture: experts by cgbench, router by cgbench and transformers\n"
    assert f"routing model\n{line}- python" in told
    record.model.update(shared_expert_path="products")
    told = latency_markdown(frame_of(2), record)
    assert f"{line[:-1]}, shared expert by products\n- python" in told


def test_markdown() -> None:
    assert latency_markdown(frame_of(2), make_record()) == MARKDOWN


def test_markdown_quotes_a_flag_as_a_shell_reads_it() -> None:
    record = make_record(prompts="my prompts.jsonl")
    text = latency_markdown(frame_of(2), record)
    assert "--max-new-tokens 64 --ignore-eos --prompts 'my prompts.jsonl'\n" in text


def test_terminal_shows_the_title_and_the_units() -> None:
    text = rendered(frame_of(2), "tiny [random weights]")
    assert "tiny [random weights]" in text
    assert "iteration p50 [ms]" in text
    assert "bucket [req]" in text


def test_synthetic_acceptance_is_labelled_in_both() -> None:
    frame = frame_of(2).assign(acceptance="synthetic:0.8,0.6")
    assert "acceptance synthetic:0.8,0.6" in rendered(frame, "tiny")
    assert "acceptance synthetic:0.8,0.6" in latency_markdown(frame, make_record())


def test_a_borrowed_length_names_its_model_in_both() -> None:
    words = "acceptance golden:glm-5.2-on (borrowed)"
    frame = frame_of(2).assign(acceptance="golden:glm-5.2-on (borrowed)")
    assert words in rendered(frame, "tiny")
    assert words in latency_markdown(frame, make_record())


def test_terminal_groups_by_ascending_batch_size() -> None:
    text = rendered(pd.concat([frame_of(4), frame_of(2)]), "tiny")
    rows = [line.split() for line in text.splitlines() if line.startswith((" eager", " iter"))]
    assert [row[2] for row in rows] == ["2"] * 4 + ["4"] * 4
    last = "iteration 2 2 4 5.000 2.750 5.980 25.0% 3.000 2.000 0.500 2.00 727.3 4.00x 2.00x ok"
    assert rows[3] == last.split()


NARROW = """\
                          iteration                                   host                       vs
             batch bucket       p50   TPOT    p99 floor verify draft   gap accept          vs    no
 scope     k [req]  [req]      [ms]   [ms]   [ms] share   [ms]  [ms]  [ms] length tok/s eager  \
spec status
"""


def full_frame() -> pd.DataFrame:
    """Every column has a value."""
    return frame_of(2).assign(half_width_frac=0.0123, discarded_blocks=1)


def test_a_narrow_terminal_folds_headings_and_keeps_every_column() -> None:
    lines = rendered(frame_of(2), "tiny", 110).splitlines()
    assert NARROW == "".join(f"{line.rstrip()}\n" for line in lines[5:8])
    assert not any("left out" in line for line in lines)


def test_a_narrower_one_goes_without_columns_and_says_so() -> None:
    text = rendered(full_frame(), "tiny", 100)
    assert "left out at this width: p99 [ms], host gap [ms], discarded. latency.md has them" in text
    assert "discarded" not in text.split("left out")[0]
    assert "11.960" not in text
    assert "11.000" in text


@pytest.mark.parametrize("width", range(80, 201, 5))
def test_no_number_is_ever_cut(width: int) -> None:
    text = rendered(full_frame(), "tiny", width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for cell in ("20.000", "727.3", "181.8", "4.00x", "25.0%", "iteration", "oom"):
        assert cell in text


def test_the_widest_headings_that_fit_are_not_folded() -> None:
    wide = max(map(len, rendered(full_frame(), "tiny", 240).splitlines()))
    assert "iteration p50 [ms]" in rendered(full_frame(), "tiny", wide)
    assert "iteration p50 [ms]" not in rendered(full_frame(), "tiny", wide - 1)


FIRST_SCREEN = """\
tiny
One iteration verifies k drafts, keeps those that are right, and drafts k more: \
1 to k + 1 tokens a request.
Scopes: eager launches every kernel, phase replays three graphs, iteration replays one.

 scope      k  batch [req]  iteration p50 [ms]  floor share  accept length  tok/s  vs eager  \
vs no spec  status
"""


def test_the_first_screen_says_what_an_iteration_is_and_has_ten_columns() -> None:
    text = rendered(full_frame(), "tiny", 120, is_wide=False)
    lines = [line.rstrip() for line in text.splitlines()]
    assert "\n".join(lines[:5]) + "\n" == FIRST_SCREEN
    assert lines[-1].strip() == "--wide shows 8 more columns. latency.md explains them all"


def test_every_column_is_shown_where_it_is_asked_for() -> None:
    text = rendered(full_frame(), "tiny", 240)
    assert "discarded" in text and "host gap [ms]" in text
    assert "--wide" not in text


def test_a_column_without_a_value_is_not_shown() -> None:
    frame = frame_of(2).assign(floor_frac=float("nan"))
    assert "floor share" in rendered(frame_of(2), "tiny")
    assert "floor share" not in rendered(frame, "tiny")
    assert "| floor share |" not in latency_markdown(frame, make_record())


@pytest.mark.parametrize(
    ("scope", "mode", "shown"),
    [
        (Scope.EAGER, Mode.EAGER, "| eager | 2 |"),
        (Scope.PHASE, Mode.GRAPH, "| phase | 2 |"),
        (Scope.PHASE, Mode.EAGER, "| phase (eager) | 2 |"),
        (Scope.ITERATION, Mode.EAGER, "| iteration (eager) | 2 |"),
    ],
)
def test_scope_that_ran_eager_says_so(scope: Scope, mode: Mode, shown: str) -> None:
    cell = replace(make_cell(scope, 2), mode=mode)
    frame = latency_frame([cell], samples_frame(make_samples(cell, Stage.ITERATION, [1], gap_ms=0)))
    assert shown in latency_markdown(frame, make_record())


def test_json_has_null_for_an_empty_cell() -> None:
    found = json.loads(to_json(frame_of(2), make_record(), Path("runs/one")))
    assert found["path"] == "runs/one"
    assert found["model"] == {"label": "tiny (random weights)", "fingerprint": "f0"}
    assert [row["bucket"] for row in found["latency"]] == [None, None, 4, 4, 4]
    assert [row["iteration_p50_ms"] for row in found["latency"]] == [10, 20, 5, 5, None]
    assert found["latency"][4]["tokens_sha256"] is None
