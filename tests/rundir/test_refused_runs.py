"""What a run directory is refused for, by name; and what is read of one that is not."""

import csv
import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cgbench.errors import RunDirectoryError
from cgbench.rundir.store import RunDirectory
from cgbench.words import Scope
from tests.rundir.test_floor_verdict import RUNS
from tests.support.command import cgbench
from tests.support.example import make_group, make_record
from tests.support.runs import Made
from tests.support.valid_run import write_valid_run

Spoil: TypeAlias = Callable[[Path], None]

ROOT = Path(__file__).parents[2]
RECORDED = sorted(file.parent for file in (ROOT / "results").rglob("run.json"))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_valid_run(tmp_path_factory.mktemp("valid") / "run")


@pytest.fixture
def run(valid: Path, tmp_path: Path) -> Path:
    shutil.copytree(valid, tmp_path / "run")
    return tmp_path / "run"


def test_there_are_runs_on_record() -> None:
    """``test_floor_verdict`` opens each of them."""
    assert len(RECORDED) >= 20
    assert RECORDED == RUNS


def cell(name: str, column: str, value: str, row: int = 1) -> Spoil:
    """One cell of a CSV file; ``row`` counts from 1."""

    def spoil(path: Path) -> None:
        file = path / name
        rows = [*csv.reader(StringIO(file.read_text()))]
        rows[row][rows[0].index(column)] = value
        out = StringIO()
        csv.writer(out, lineterminator="\n").writerows(rows)
        file.write_text(out.getvalue())

    return spoil


def text(name: str, old: str, new: str) -> Spoil:
    def spoil(path: Path) -> None:
        content = (path / name).read_text()
        assert old in content
        (path / name).write_text(content.replace(old, new, 1))

    return spoil


def part(path: str, value: Any) -> Spoil:
    """One part of ``run.json``."""
    *outer, last = path.split(".")

    def spoil(run: Path) -> None:
        raw = json.loads((run / "run.json").read_text())
        inner = raw
        for name in outer:
            inner = inner[int(name) if name.isdecimal() else name]
        inner[last] = value
        (run / "run.json").write_text(json.dumps(raw))

    return spoil


def whole(name: str, content: str) -> Spoil:
    return lambda run: (run / name).write_text(content) and None


def column(name: str, value: object) -> Spoil:
    """A whole column of the samples."""

    def spoil(run: Path) -> None:
        samples = pq.read_table(run / "samples.parquet")
        place = samples.column_names.index(name)
        array = pa.array([value] * len(samples))
        pq.write_table(samples.set_column(place, name, array), run / "samples.parquet")

    return spoil


DEEP = "[" * 100_000 + "]" * 100_000
LATENCY = "latency.csv: damaged: "
RECORD = "run.json: "


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        *(
            (
                cell("latency.csv", "iteration_p50_ms", value),
                f"{LATENCY}iteration_p50_ms is {value}",
            )
            for value in ("-1.0", "0.0")
        ),
        *(
            (
                cell("latency.csv", "iteration_p50_ms", value),
                f"{LATENCY}iteration_p50_ms is '{value}' in row 1, must be a number",
            )
            for value in ("nan", "inf", "-inf", "True", "1_0", " 1")
        ),
        (cell("latency.csv", "iteration_p50_ms", ""), f"{LATENCY}p50, p90 and p99 do not ascend"),
        (cell("latency.csv", "tpot_ms", "1e300"), f"{LATENCY}tpot_ms is 1e+300 in row 1, must be"),
        (cell("latency.csv", "bucket", "0", row=3), f"{LATENCY}bucket is 0 in row 3, must be 1 to"),
        (cell("latency.csv", "bucket", "-4", row=3), f"{LATENCY}bucket is -4 in row 3, must be"),
        (cell("latency.csv", "bucket", "1", row=3), f"{LATENCY}bucket and padding_frac are not"),
        (cell("latency.csv", "bucket", "4"), f"{LATENCY}bucket and padding_frac are not"),
        (cell("latency.csv", "dtype", ""), f"{LATENCY}dtype is empty in row 1"),
        (cell("latency.csv", "device", "tpu"), f"{LATENCY}device is 'tpu', must be cpu or cuda"),
        (cell("latency.csv", "head", "x" * 200_000), f"{LATENCY}field larger than field limit"),
        (cell("latency.csv", "head", "x" * 5000), "must be printable, of at most 4096 characters"),
        (cell("latency.csv", "head", "a\nb"), "must be printable, of at most 4096 characters"),
        (
            cell("latency.csv", "spec_tokens", "0", row=2),
            f"{LATENCY}a row is there twice, by scope",
        ),
        (cell("latency.csv", "model", "other"), f"{LATENCY}model is other, and model.label in run"),
        (text("latency.csv", ",own,", ',"own,'), LATENCY),
        (text("latency.csv", ",own,", ',own",'), f"{LATENCY}a quote is left open"),
        (text("latency.csv", ",own,", ","), f"{LATENCY}row 2 has 50 cells, not 51"),
        (text("latency.csv", "model,head", "model,model"), f"{LATENCY}not the columns"),
        (cell("capture.csv", "bucket", "-4"), "capture.csv: damaged: bucket is -4 in row 1"),
        (
            cell("capture.csv", "capture_ms", ""),
            "capture.csv: damaged: capture_ms is empty in row 1",
        ),
        (
            cell("capture.csv", "num_tokens", "11"),
            "capture.csv: damaged: num_tokens is no multiple",
        ),
        (
            cell("acceptance.csv", "accepted", "71"),
            "acceptance.csv: damaged: is not the mean_acceptance_length that latency.csv has",
        ),
        (
            cell("acceptance.csv", "accepted", "90", row=2),
            "acceptance.csv: damaged: counts are not of leading drafts in row 2",
        ),
        (
            cell("acceptance.csv", "scope", "phase"),
            "acceptance.csv: damaged: counts are not of leading drafts",
        ),
        (
            cell("blocks.csv", "spec_tokens", "1"),
            "blocks.csv: damaged: has rows of iteration 1 2, which latency.csv lacks",
        ),
        (
            cell("blocks.csv", "iteration_p50_s", "-1"),
            "blocks.csv: damaged: iteration_p50_s is -1.0",
        ),
        (column("gpu_s", True), "samples.parquet: damaged: gpu_s is not of numbers"),
        (column("gpu_s", 1), "samples.parquet: damaged: gpu_s is not of numbers: must be float64"),
        (column("gpu_s", None), "samples.parquet: damaged: gpu_s is not of numbers"),
        (column("gpu_s", float("nan")), "samples.parquet: damaged: gpu_s is empty in row 1"),
        (column("gpu_s", -1.0), "samples.parquet: damaged: gpu_s is not above 0 and finite in row"),
        (column("stage", "wall"), "samples.parquet: damaged: stage is 'wall'"),
        (column("mode", "graph"), "samples.parquet: damaged: has rows of eager 0 2 graph, which"),
        (column("batch_size", True), "samples.parquet: damaged: batch_size is not of numbers"),
        (
            part("model.fingerprint", None),
            f"{RECORD}field model.fingerprint is missing or is not a",
        ),
        (
            part("model.fingerprint", 5),
            f"{RECORD}field model.fingerprint is missing or is not a str",
        ),
        (part("model.fingerprint", ""), f"{RECORD}field model.fingerprint is missing or is not a"),
        (part("arguments.seed", None), f"{RECORD}field arguments.seed is missing or is not an int"),
        (part("arguments.seed", True), f"{RECORD}field arguments.seed is missing or is not an int"),
        (
            part("arguments.ignore_eos", "yes"),
            f"{RECORD}field arguments.ignore_eos is missing or is",
        ),
        (
            part("arguments.max_new_tokens", -1),
            f"{RECORD}field arguments.max_new_tokens is missing",
        ),
        (part("arguments.batch_sizes", None), f"{RECORD}field arguments.batch_sizes is missing or"),
        (
            part("workload.sha256", None),
            f"{RECORD}field workload.sha256 is missing or is not a str",
        ),
        (
            part("environment.gpu", 5),
            f"{RECORD}field environment.gpu is missing or is not a str or",
        ),
        (
            part("plans.0.batch_sizes", [0]),
            f"{RECORD}field plans[0].batch_sizes is missing or is not",
        ),
        (part("plans.0.batch_sizes", [4, 4]), "a list of int of 1 to 1048576, each once"),
        (part("plans.0.spec_tokens", True), f"{RECORD}field plans[0].spec_tokens is missing or is"),
        (
            part("telemetry.sm_clock_mhz.median", "fast"),
            f"{RECORD}field telemetry.sm_clock_mhz.med",
        ),
        (
            part("floor.limits.flops_per_s", -1.0),
            f"{RECORD}field floor.limits.flops_per_s is missing",
        ),
        (part("engine.phases", [{}]), f"{RECORD}field engine.phases[0].spec_tokens is missing"),
        (part("engine.failures", [1]), f"{RECORD}field engine.failures is missing or is not a"),
        (part("floor.accounts", [{}]), f"{RECORD}field floor.accounts[0] is not an account"),
        (part("model.label", "\ud800"), f"{RECORD}not JSON: text '\\ud800' holds half a surrogate"),
        (part("warnings", ["\x1b[2J"]), f"{RECORD}not JSON: text '\\x1b[2J' holds a control char"),
        (part("seconds.run", float("inf")), f"{RECORD}not JSON: Infinity is no number"),
        (whole("run.json", "[1]"), f"{RECORD}not a JSON object"),
        (whole("run.json", DEEP), f"{RECORD}not JSON: nested more than 32 levels deep"),
        (whole("run.json", "[" * 500 + "]" * 500), f"{RECORD}not JSON: nested more than 32 levels"),
        (whole("run.json", '{"a": 1e400}'), f"{RECORD}not JSON: a number is too large"),
        (
            whole("run.json", '{"a": 1, "b": 2, "a": 3}'),
            f"{RECORD}not JSON: key 'a' is there twice",
        ),
        (whole("run.json", f'{{"a": {"9" * 5000}}}'), f"{RECORD}not JSON: Exceeds the limit"),
        (whole("run.json", f'{{"a": {"9" * 30}}}'), f"{RECORD}not JSON: a whole number has more"),
        (
            text("tokens.jsonl", '"request": 0', '"request": -1'),
            "tokens.jsonl: damaged: line 1: req",
        ),
        (text("tokens.jsonl", "[3]", "[true]"), "tokens.jsonl: damaged: line 1: token_ids is not"),
        (
            text("tokens.jsonl", '"request": 1', '"request": 0'),
            "tokens.jsonl: damaged: a request is",
        ),
        (
            text("tokens.jsonl", '"eager", "mode"', '"phase", "mode"'),
            "tokens.jsonl: damaged: has rows",
        ),
    ],
)
def test_what_no_run_writes_is_refused_by_name(run: Path, spoil: Spoil, complaint: str) -> None:
    spoil(run)
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.open(run)
    assert str(caught.value).startswith(str(run)) and complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "RUN", "VALID"),
        ("compare", "VALID", "RUN"),
        ("compare", "RUN", "--thin-baseline", "THIN"),
        ("plan", "--spec-tokens", "2", "--costs", "RUN"),
        ("run", "--resume", "--output", "RUN"),
    ],
    ids=" ".join,
)
def test_every_reader_refuses_it(
    valid: Path, run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    cell("latency.csv", "iteration_p50_ms", "-5")(run)
    paths = {"RUN": run, "VALID": valid, "THIN": tmp_path / "thin"}
    done = cgbench(*(paths.get(word, word) for word in words))
    done.refused(2, f"{run / 'latency.csv'}: damaged: iteration_p50_ms is -5.0 in row 1")


def test_an_opened_run_reads_no_file_again(run: Path) -> None:
    opened = RunDirectory.open(run)
    shutil.rmtree(run)
    frames = opened.latency(), opened.capture(), opened.samples(), opened.acceptance()
    assert all(len(frame) for frame in (*frames, opened.blocks())) and opened.tokens()
    assert opened.finished_batch_sizes == {2}


def test_what_a_caller_does_to_a_table_stays_with_it(run: Path) -> None:
    opened = RunDirectory.open(run)
    latency, samples = opened.latency(), opened.samples()
    latency["iteration_p50_ms"] = 0.0
    samples.loc[0, "gpu_s"] = 0.0
    assert opened.latency()["iteration_p50_ms"].max() > 0 and opened.samples()["gpu_s"].min() > 0


def test_what_is_written_is_what_the_next_one_reads(tmp_path: Path) -> None:
    """Rounded as in the file, so that a resumed run has the numbers of one that was not."""
    directory = RunDirectory.create(tmp_path / "run", make_record())
    group = make_group(2)
    directory.write_group(group.cells, group.samples)
    opened = RunDirectory.open(tmp_path / "run")
    pd.testing.assert_frame_equal(directory.latency(), opened.latency())
    pd.testing.assert_frame_equal(directory.samples(), opened.samples())
    assert opened.latency()["tpot_ms"].notna().any()


def test_a_record_that_could_not_be_read_back_is_not_begun(tmp_path: Path) -> None:
    record = make_record(max_time=float("inf"))
    with pytest.raises(RunDirectoryError, match=r"run\.json: not JSON: Infinity is no number"):
        RunDirectory.create(tmp_path / "run", record)
    assert not (tmp_path / "run").exists()


def test_a_stage_below_the_clocks_tick_has_no_ratio(tmp_path: Path) -> None:
    paths = [Made(seed=seed).write(tmp_path / str(seed)) for seed in (0, 1)]
    file = paths[1] / "samples.parquet"
    samples = pd.read_parquet(file)
    samples.loc[samples["stage"] == "accept", "gpu_s"] = 0.0
    samples.to_parquet(file, index=False)
    done = cgbench("compare", *paths, "--format", "json")
    lines = [line for line in json.loads(done.stdout)["lines"] if line["what"] == "accept"]
    assert lines and {line["verdict"] for line in lines} == {"inconclusive"}
    assert {line["reason"] for line in lines} == {"not above zero in every block: no ratio"}
    assert {line["scope"] for line in lines} == {*Scope}
