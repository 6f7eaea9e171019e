"""The run directory: what it refuses, and that a kill at any moment loses no finished group."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pandas as pd
import pytest

from cgbench.errors import RunDirectoryError
from cgbench.rundir import store
from cgbench.rundir.block_schema import BLOCKS
from cgbench.rundir.schema import ACCEPTANCE, CAPTURE, LATENCY, SAMPLES, Column
from cgbench.rundir.store import RunDirectory
from cgbench.tables.latency import latency_markdown
from cgbench.words import Phase
from tests.support.example import make_cost, make_group, make_record

BATCH_SIZES = (4, 2)

LATENCY_CSV = """\
model,head,device,dtype,attention,compile,acceptance,tp_size,mode,scope,spec_tokens,batch_size,\
bucket,padding_frac,context_len,status,iterations,iteration_p50_ms,iteration_p90_ms,\
iteration_p99_ms,verify_p50_ms,accept_p50_ms,draft_p50_ms,commit_p50_ms,host_gap_p50_ms,\
mean_acceptance_length,acceptance_rate_per_pos,tpot_ms,output_tok_per_s,speedup_vs_eager,\
speedup_vs_no_spec,floor_ms,floor_frac,peak_memory_bytes,tokens_sha256,l2,mean_context_len,\
blocks,discarded_blocks,half_width_frac,routing,experts_read,engine,quant,\
kv_dtype,mtp_modules,draft_vocab,timed_by,gpu_busy_ms,kernels_per_step,graph_launches_per_step
tiny (random weights),none,cuda,bfloat16,triton,off,greedy,1,eager,eager,0,2,,,256,ok,5,10,11.6,\
11.96,,,,,1,1,,11,181.818,1,1,,,4096,c0ffee,warm,,1,,,model,,cgbench,none,same,1,target,device,,,
tiny (random weights),own,cuda,bfloat16,triton,off,greedy,1,eager,eager,2,2,,,256,ok,5,20,21.6,\
21.96,,,,,2,2,0.70;0.30,11,181.818,1,1,,,4096,c0ffee,warm,,1,,,model,,cgbench,none,same,1,target,device,,,
tiny (random weights),none,cuda,bfloat16,triton,off,greedy,1,graph,iteration,0,2,4,0.5,256,ok,5,\
5,5.8,5.98,,,,,0.5,1,,5.5,363.636,2,1,,,4096,c0ffee,warm,,1,,,model,,cgbench,none,same,1,target,device,,,
tiny (random weights),own,cuda,bfloat16,triton,off,greedy,1,graph,iteration,2,2,4,0.5,256,ok,5,\
5,5.8,5.98,3,0.2,2,0.1,0.5,2,0.70;0.30,2.75,727.273,4,2,1.25,0.25,4096,c0ffee,warm,,1,,,model,,cgbench,none,same,1,target,device,,,
tiny (random weights),own,cuda,bfloat16,triton,off,greedy,1,graph,phase,2,2,4,0.5,256,oom,\
,,,,,,,,,,,,,,,,,,,warm,,,,,model,,cgbench,none,same,1,target,device,,,
"""

CAPTURE_CSV = """\
phase,spec_tokens,bucket,num_tokens,warmup_ms,capture_ms,instantiate_ms,first_replay_ms,\
pool_bytes,driver_bytes,nodes,break_even_replays
iteration,2,4,12,10,15,5,2,1024,512,100,2
verify,2,4,12,10,15,5,2,1024,512,100,
"""


def write_groups(directory: RunDirectory) -> None:
    """What ``run`` does after it has loaded: capture, the batch sizes left to do, finish."""
    directory.write_capture([make_cost(Phase.ITERATION), make_cost(Phase.VERIFY)])
    for batch_size in BATCH_SIZES:
        if batch_size not in directory.finished_batch_sizes:
            group = make_group(batch_size)
            directory.write_group(group.cells, group.samples, group.tokens)
    directory.finish(latency_markdown)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run, which no test changes."""
    directory = RunDirectory.create(tmp_path_factory.mktemp("written") / "run", make_record())
    write_groups(directory)
    return directory


@pytest.fixture(scope="module")
def finished(written: RunDirectory) -> RunDirectory:
    """The finished run as it is read, which no test changes."""
    return RunDirectory.open(written.path)


@pytest.fixture
def copied(tmp_path: Path, written: RunDirectory) -> Path:
    """A copy, which a test may spoil."""
    return Path(shutil.copytree(written.path, tmp_path / "runs" / "finished"))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix != ".tmp"}


def test_latency_csv(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, make_record())
    group = make_group(2)
    directory.write_group(group.cells, group.samples)
    assert (tmp_path / "latency.csv").read_text() == LATENCY_CSV


def test_capture_csv(finished: RunDirectory) -> None:
    assert (finished.path / "capture.csv").read_text() == CAPTURE_CSV


def test_files_of_a_finished_run(finished: RunDirectory) -> None:
    assert sorted(contents(finished.path)) == [
        "acceptance.csv",
        "blocks.csv",
        "capture.csv",
        "latency.csv",
        "latency.md",
        "run.json",
        "samples.parquet",
        "tokens.jsonl",
    ]
    assert RunDirectory.open(finished.path).record.complete


def test_tokens_are_saved_only_when_given(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, make_record())
    group = make_group(2)
    directory.write_group(group.cells, group.samples)
    assert directory.tokens() == []
    assert not (tmp_path / "tokens.jsonl").exists()


def test_tokens_lines(finished: RunDirectory) -> None:
    lines = (finished.path / "tokens.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 4 + 4 * 2
    assert json.loads(lines[-1]) == {
        "scope": "iteration",
        "mode": "graph",
        "spec_tokens": 2,
        "batch_size": 2,
        "request": 1,
        "prompt_ids": [1, 2],
        "token_ids": [3],
    }


def dtypes(columns: tuple[Column, ...]) -> dict[str, str]:
    return {column.name: column.dtype for column in columns}


def test_dtypes_survive_the_round_trip(finished: RunDirectory) -> None:
    run = RunDirectory.open(finished.path)
    frames = [run.latency(), run.capture(), run.samples(), run.acceptance(), run.blocks()]
    declared = (LATENCY, CAPTURE, SAMPLES, ACCEPTANCE, BLOCKS)
    for frame, columns in zip(frames, declared, strict=True):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == dtypes(columns)


def test_a_run_with_nothing_measured_can_be_read(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, make_record())
    run = RunDirectory.open(tmp_path)
    assert run.finished_batch_sizes == set()
    assert {name: str(dtype) for name, dtype in run.latency().dtypes.items()} == dtypes(LATENCY)


def test_raw_samples_are_exact(finished: RunDirectory) -> None:
    written = [sample for batch_size in BATCH_SIZES for sample in make_group(batch_size).samples]
    assert finished.samples()["gpu_s"].tolist() == [sample.gpu_s for sample in written]


def test_labels_that_look_like_missing_values_are_kept(finished: RunDirectory) -> None:
    assert finished.latency()["head"].tolist()[:2] == ["none", "own"]


@pytest.mark.parametrize("name", ["a-file", "a-folder"])
def test_create_refuses_what_is_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-folder" / "notes.txt").touch()
    with pytest.raises(RunDirectoryError, match=rf"--output .*{name}: exists.*--resume"):
        RunDirectory.create(tmp_path / name, make_record())


def test_create_refuses_a_folder_it_cannot_make(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunDirectoryError, match=r"--output .*file/run: Not a directory"):
        RunDirectory.create(tmp_path / "file" / "run", make_record())


def test_check_refuses_early(tmp_path: Path, copied: Path) -> None:
    RunDirectory.check(tmp_path / "new", resume=False)
    RunDirectory.check(RunDirectory.create(tmp_path / "begun", make_record()).path, resume=True)
    with pytest.raises(RunDirectoryError, match=r"--resume: .*finished is complete"):
        RunDirectory.check(copied, resume=True)
    with pytest.raises(RunDirectoryError, match="exists already"):
        RunDirectory.check(copied, resume=False)
    with pytest.raises(RunDirectoryError, match=r"new/run\.json: missing"):
        RunDirectory.check(tmp_path / "new", resume=True)


def test_resume_names_the_flags_that_differ(copied: Path) -> None:
    other = make_record(spec_tokens=[0, 3], max_new_tokens=8)
    with pytest.raises(RunDirectoryError, match=r"another --spec-tokens, --max-new-tokens\."):
        RunDirectory.resume(copied, other)


def test_resume_names_the_model(copied: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"another MODEL\."):
        RunDirectory.resume(copied, make_record(model="default"))


def test_resume_names_another_machine_and_other_weights(copied: Path) -> None:
    """Ratios within a run must not mix machines, builds or models."""
    other = make_record()
    other.environment["gpu"] = "another"
    other.environment["cgbench_commit"] = "another"
    other.model["fingerprint"] = "another"
    with pytest.raises(RunDirectoryError, match=r"another gpu, cgbench_commit, model\."):
        RunDirectory.resume(copied, other)


def test_resume_compares_arguments_as_json_holds_them(copied: Path) -> None:
    assert RunDirectory.resume(copied, make_record(spec_tokens=(0, 2))).path


class Killed(BaseException):
    """Stands for the process's end."""


def folders_at_each_rename(path: Path, folder: Path) -> None:
    """Write a run in ``path``. What a kill in place of its ``nth`` rename leaves of it is kept in
    ``folder/nth``."""
    nth = count()

    def replace(source: Path, target: Path) -> None:
        shutil.copytree(path, folder / str(next(nth)))
        rename(source, target)

    rename = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.os, "replace", replace)
        write_groups(RunDirectory.create(path, make_record()))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that kills leave behind, by the rename that they came before."""
    root = tmp_path_factory.mktemp("killed")
    folders_at_each_rename(root / "run", root)
    return root


def kill_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """End the process in place of the ``nth`` rename (from 0)."""
    calls: Iterator[int] = iter(range(nth))

    def replace(source: Path, target: Path) -> None:
        if next(calls, None) is None:
            raise Killed
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(store.os, "replace", replace)


NUM_RENAMES_IN_CREATE = 6
NUM_RENAMES_IN_CAPTURE = 2
NUM_RENAMES_IN_GROUP = 7
NUM_RENAMES_BEFORE_GROUPS = NUM_RENAMES_IN_CREATE + NUM_RENAMES_IN_CAPTURE
NUM_RENAMES = NUM_RENAMES_BEFORE_GROUPS + NUM_RENAMES_IN_GROUP * len(BATCH_SIZES) + 2


def test_number_of_renames(killed: Path) -> None:
    """The last rename of a run is the one that the sweep below kills last."""
    left = {folder.name for folder in killed.iterdir()}
    assert left == {"run", *map(str, range(NUM_RENAMES))}


@pytest.mark.parametrize("nth", range(NUM_RENAMES_IN_CREATE))
def test_killed_before_anything_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    kill_at(monkeypatch, nth)
    with pytest.raises(Killed):
        RunDirectory.create(tmp_path, make_record())
    with pytest.raises(RunDirectoryError, match=r"run\.json: missing"):
        RunDirectory.open(tmp_path)


# Of the first group its first rename and its last: the second one's are killed at with a group
# to keep.
BETWEEN = range(NUM_RENAMES_BEFORE_GROUPS + 1, NUM_RENAMES_BEFORE_GROUPS + NUM_RENAMES_IN_GROUP - 1)
KILLED_AT = sorted({*range(NUM_RENAMES_IN_CREATE, NUM_RENAMES)} - {*BETWEEN})


@pytest.mark.parametrize("nth", KILLED_AT)
def test_killed_and_resumed(tmp_path: Path, written: RunDirectory, killed: Path, nth: int) -> None:
    path = shutil.copytree(killed / str(nth), tmp_path / "killed")
    resumed = RunDirectory.resume(path, make_record())

    num_finished = min((nth - NUM_RENAMES_BEFORE_GROUPS) // NUM_RENAMES_IN_GROUP, 2)
    kept = set(BATCH_SIZES[: max(num_finished, 0)])
    assert not resumed.record.complete
    assert resumed.finished_batch_sizes == kept
    assert set(resumed.samples()["batch_size"]) == kept
    assert set(resumed.acceptance()["batch_size"]) == kept
    assert {row["batch_size"] for row in resumed.tokens()} == kept

    write_groups(resumed)
    assert resumed.record.resumed == [
        {"utc": make_record().created_utc, "kept_batch_sizes": sorted(kept)}
    ]
    resumed.record.resumed.clear()
    resumed.finish(latency_markdown)
    assert contents(path) == contents(written.path)


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "name", ["run.json", "latency.csv", "capture.csv", "samples.parquet", "acceptance.csv"]
)
def test_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(RunDirectoryError, match=rf"{name}: missing or damaged"):
        RunDirectory.resume(copied, make_record())


@pytest.mark.parametrize("name", ["latency.csv", "capture.csv", "samples.parquet"])
def test_truncated_file_is_named(copied: Path, name: str) -> None:
    truncate(copied / name)
    with pytest.raises(RunDirectoryError, match=rf"{name}: .*damaged"):
        RunDirectory.resume(copied, make_record())


def test_truncated_tokens_are_named(copied: Path) -> None:
    truncate(copied / "tokens.jsonl")
    with pytest.raises(RunDirectoryError, match=r"tokens\.jsonl: damaged: cut short"):
        RunDirectory.open(copied)


def test_a_table_cut_short_within_its_last_line_is_named(copied: Path) -> None:
    """Else the cells that are gone would read as empty, and the row as good."""
    file = copied / "latency.csv"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(RunDirectoryError, match=r"latency\.csv: damaged: cut short"):
        RunDirectory.open(copied)


@pytest.mark.parametrize(
    ("name", "good", "bad", "complaint"),
    [
        ("latency.csv", ",ok,", ",okay,", "status is 'okay', must be ok or audit_failed or oom"),
        ("latency.csv", ",iteration,", ",,", "scope is empty in row 3"),
        ("capture.csv", "verify,", "verfy,", "phase is 'verfy', must be verify or"),
    ],
)
def test_a_word_that_no_cell_may_hold_is_named(
    copied: Path, name: str, good: str, bad: str, complaint: str
) -> None:
    file = copied / name
    file.write_text(file.read_text().replace(good, bad, 1))
    with pytest.raises(RunDirectoryError, match=rf"{name}: damaged: {complaint}"):
        RunDirectory.open(copied)


@pytest.mark.parametrize(
    ("name", "column", "value", "complaint"),
    [
        ("acceptance.csv", "accepted", 101, "accepted is not 0 to drafted"),
        ("acceptance.csv", "accepted", -1, "accepted is -1 in row 1, must be 0 to "),
        ("acceptance.csv", "drafted", -1, "drafted is -1 in row 1, must be 0 to "),
        ("latency.csv", "peak_memory_bytes", 0, "peak_memory_bytes is 0 in row 1, must be 1 to "),
        (
            "latency.csv",
            "peak_memory_bytes",
            float("inf"),
            "peak_memory_bytes is 'inf' in row 1, must be a whole",
        ),
        ("capture.csv", "capture_ms", 0.0, "capture_ms is 0.0 in row 1, must be 1e-09 to "),
        ("samples.parquet", "gpu_s", 0.0, "gpu_s is not above 0 and finite in row 1"),
        ("samples.parquet", "wall_s", float("inf"), "wall_s is inf in row 1, must be 1e-12 to "),
    ],
)
def test_a_number_that_no_measurement_gives_is_named(
    copied: Path, name: str, column: str, value: float, complaint: str
) -> None:
    file = copied / name
    is_csv = file.suffix == ".csv"
    frame = pd.read_csv(file) if is_csv else pd.read_parquet(file)
    frame.loc[0, column] = value
    frame.to_csv(file, index=False) if is_csv else frame.to_parquet(file, index=False)
    with pytest.raises(RunDirectoryError, match=rf"{name}: .*damaged: {complaint}"):
        RunDirectory.open(copied)


def test_words_where_numbers_belong_are_named(copied: Path) -> None:
    file = copied / "samples.parquet"
    frame = pd.read_parquet(file)
    frame.assign(gpu_s=frame["gpu_s"].map(str)).to_parquet(file, index=False)
    with pytest.raises(RunDirectoryError, match=r"samples.parquet: damaged: gpu_s is not of num"):
        RunDirectory.open(copied)


@pytest.mark.parametrize("name", ["latency.csv", "capture.csv"])
def test_a_row_that_is_there_twice_is_named(copied: Path, name: str) -> None:
    file = copied / name
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(RunDirectoryError, match=rf"{name}: damaged: a row is there twice"):
        RunDirectory.open(copied)


def test_latency_markdown_tells_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    directory = RunDirectory.create(path, make_record())
    group = make_group(4)
    directory.write_group(group.cells, group.samples)
    write_groups(RunDirectory.resume(path, make_record()))
    line = "- resumed: 2026-11-22T12:00:00+00:00, kept batch sizes 4\n"
    assert line in (path / "latency.md").read_text()


def test_other_columns_are_named(copied: Path) -> None:
    file = copied / "samples.parquet"
    pd.read_parquet(file).drop(columns="wall_s").to_parquet(file)
    with pytest.raises(RunDirectoryError, match=r"samples\.parquet: damaged: not the columns"):
        RunDirectory.open(copied)


RECORDED = Path(__file__).parents[2] / "results" / "h200"
OF_VERSION_1 = [
    file.parent
    for file in sorted(RECORDED.glob("*/run.json"))
    if json.loads(file.read_text())["schema_version"] == 1
]


@pytest.mark.parametrize("path", OF_VERSION_1, ids=lambda path: path.name)
def test_a_directory_from_before_a_column_is_read_at_its_default(path: Path) -> None:
    run = RunDirectory.open(path)
    latency = run.latency()
    assert set(latency["l2"]) == {"warm"} and set(run.samples()["process"]) == {0}
    assert latency[["blocks", "discarded_blocks", "half_width_frac"]].isna().all(axis=None)
    assert run.blocks().empty and run.record.telemetry == {}


def test_a_column_that_every_directory_has_must_be_there(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(copied, path)
    latency = pd.read_csv(path / "latency.csv")
    latency.drop(columns="status").to_csv(path / "latency.csv", index=False)
    with pytest.raises(RunDirectoryError, match=r"latency\.csv: damaged"):
        RunDirectory.open(path).latency()


def test_what_was_opened_is_read_once(copied: Path) -> None:
    """Nothing is left to read it from."""
    opened = RunDirectory.open(copied)
    shutil.rmtree(copied)
    tables = (opened.latency(), opened.capture(), opened.acceptance(), opened.samples())
    assert all(len(frame) for frame in tables) and opened.record.complete
    assert opened.blocks().empty and len(opened.tokens()) > 0
