"""A run directory with one value changed is read as it stands, or refused by its file's name.

The kind, not the cases: every field of every file gets values that no run writes. What is not
refused must be harmless, so the gate and the planner run on it to their end.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgbench.errors import RunDirectoryError
from cgbench.gate.ci_formats import junit, to_json
from cgbench.gate.comparison import Rules, judge
from cgbench.gate.evidence import Evidence
from cgbench.rundir.run_costs import read_costs
from cgbench.rundir.store import RunDirectory
from tests.support.command import cgbench
from tests.support.valid_run import write_valid_run

# Two seconds for what takes a twentieth of one. Reading without a limit would take far longer.
WITHIN_2_S = settings(
    max_examples=6,
    deadline=2000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

TABLES = ("latency.csv", "capture.csv", "acceptance.csv", "blocks.csv")

CELLS = st.sampled_from(
    [
        *("", "0", "-1", "1", "0.5", "nan", "inf", "-inf", "1e400", "1e300", "1e-320"),
        *("True", "null", "None", "abc", '"', '""', '"a', "a\nb", "\x1b[31m", "\x00", "٣"),
        *("9" * 5000, "9" * 18, "x" * 200_000, "0x10", "1_0", " 1", "1;2"),
    ]
)
DEEP = "[" * 100_000 + "]" * 100_000
JSON_TEXTS = st.sampled_from(
    [
        *("null", "true", "0", "-1", "1", "0.5", "NaN", "Infinity", "-Infinity", "1e400", "1e300"),
        *(
            '""',
            '"abc"',
            '"\\ud800"',
            '"a\\nb"',
            '"\\u0001"',
            "[]",
            "{}",
            "[[1]]",
            "[null]",
            '{"a": {}}',
        ),
        *("9" * 5000, "9" * 30, DEEP, '{"a": 1, "a": 2}', json.dumps("x" * 200_000)),
    ]
)
PARQUET_VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        0.5,
        float("nan"),
        float("inf"),
        1e300,
        1e-320,
        2**63 - 1,
        "",
        "abc",
        "a\nb",
    ]
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_valid_run(tmp_path_factory.mktemp("valid") / "run")


@pytest.fixture(scope="module")
def changed(valid: Path) -> Path:
    """A copy, for an example to change one file of."""
    shutil.copytree(valid, valid.parent / "changed")
    return valid.parent / "changed"


@cache
def base(valid: Path) -> Evidence:
    return Evidence.read("BASE", valid)


def judged(valid: Path, changed: Path, name: str) -> None:
    """Either every reader is content, or the run is refused in one line with the file's name."""
    try:
        run = RunDirectory.open(changed)
    except RunDirectoryError as error:
        assert str(changed / name) in str(error) and "\n" not in str(error)
        assert error.exit_code == 2 and len(str(error)) < 1000
        return
    found = judge(base(valid), Evidence.of("NEW", run), Rules())
    assert found.exit_code in (0, 1, 3, 4) and to_json(found)
    ElementTree.fromstring(junit(found))
    # A run without a captured or an eager iteration is valid, and has no costs.
    with suppress(RunDirectoryError):
        read_costs(changed, 2)


def rewritten(valid: Path, changed: Path, name: str, content: bytes) -> None:
    (changed / name).write_bytes(content)
    try:
        judged(valid, changed, name)
    finally:
        shutil.copyfile(valid / name, changed / name)


def test_the_valid_run_is_valid(valid: Path, changed: Path) -> None:
    assert cgbench("compare", valid, changed).code == 0
    assert cgbench("plan", "--spec-tokens", "2", "--costs", valid).code == 0
    assert RunDirectory.open(valid).tokens() and len(RunDirectory.open(valid).blocks())


def table(path: Path) -> list[list[str]]:
    return [*csv.reader(StringIO(path.read_text()))]


@pytest.mark.parametrize("name", TABLES)
@WITHIN_2_S
@given(data=st.data())
def test_a_cell_of_a_table(valid: Path, changed: Path, name: str, data: st.DataObject) -> None:
    rows = table(valid / name)
    row = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, len(rows[0]) - 1))
    is_quoted = data.draw(st.booleans())
    rows[row][column] = data.draw(CELLS)
    out = StringIO()
    if is_quoted:
        csv.writer(out, lineterminator="\n").writerows(rows)
    else:
        out.writelines(",".join(cells) + "\n" for cells in rows)
    rewritten(valid, changed, name, out.getvalue().encode())


@pytest.mark.parametrize("name", TABLES)
@WITHIN_2_S
@given(data=st.data())
def test_lines_of_a_table(valid: Path, changed: Path, name: str, data: st.DataObject) -> None:
    """Gone, twice, in another order, or cut."""
    text = (valid / name).read_bytes()
    lines = text.splitlines(keepends=True)
    picked = st.lists(st.sampled_from(lines), max_size=2 * len(lines)).map(b"".join)
    cut = st.integers(0, len(text)).map(lambda end: text[:end])
    rewritten(valid, changed, name, data.draw(picked | cut))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value another may stand: all of it, and every part at any depth."""
    yield at
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places(value[key], (*at, key))


def with_text_at(value: Any, at: tuple[Any, ...], text: str) -> str:
    """The JSON of ``value`` with ``text``, JSON or not, in one place; without it where None."""
    hole = "<hole>"
    if not at:
        return text
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = hole
    return json.dumps(copy).replace(json.dumps(hole), text)


@settings(WITHIN_2_S, max_examples=24)
@given(data=st.data())
def test_a_part_of_the_record(valid: Path, changed: Path, data: st.DataObject) -> None:
    raw = json.loads((valid / "run.json").read_text())
    place = data.draw(st.sampled_from([*places(raw)]))
    text = with_text_at(raw, place, data.draw(JSON_TEXTS))
    rewritten(valid, changed, "run.json", text.encode())


@WITHIN_2_S
@given(data=st.data())
def test_a_part_of_the_record_that_is_gone(valid: Path, changed: Path, data: st.DataObject) -> None:
    raw = json.loads((valid / "run.json").read_text())
    place = data.draw(st.sampled_from([at for at in places(raw) if at]))
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    rewritten(valid, changed, "run.json", json.dumps(raw).encode())


@settings(WITHIN_2_S, max_examples=12)
@given(data=st.data())
def test_a_part_of_a_line_of_tokens(valid: Path, changed: Path, data: st.DataObject) -> None:
    lines = (valid / "tokens.jsonl").read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    row = json.loads(lines[number])
    place = data.draw(st.sampled_from([*places(row)]))
    lines[number] = with_text_at(row, place, data.draw(JSON_TEXTS))
    rewritten(valid, changed, "tokens.jsonl", "".join(f"{line}\n" for line in lines).encode())


@settings(WITHIN_2_S, max_examples=12)
@given(data=st.data())
def test_a_column_of_the_samples(valid: Path, changed: Path, data: st.DataObject) -> None:
    samples = pq.read_table(valid / "samples.parquet")
    column = data.draw(st.integers(0, samples.num_columns - 1))
    values = samples.column(column).to_pylist()
    value = data.draw(PARQUET_VALUES)
    first = data.draw(st.sampled_from([0, len(values) - 1]))
    values[first:] = [value] * (len(values) - first)
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return  # such a column cannot be
    edited = samples.set_column(column, samples.column_names[column], array)
    out = pa.BufferOutputStream()
    pq.write_table(edited, out)
    rewritten(valid, changed, "samples.parquet", out.getvalue().to_pybytes())


FILES = ("run.json", *TABLES, "samples.parquet", "tokens.jsonl")


def as_fifo(file: Path) -> None:
    os.mkfifo(file)


def as_link_to_itself(file: Path) -> None:
    file.symlink_to(file.name)


def as_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


# One file of each format, and each file as what would be waited for.
NO_FILES = [
    (name, make)
    for name in FILES
    for make in (as_fifo, Path.mkdir, as_link_to_itself, as_device)
    if make is as_fifo or name not in TABLES[1:]
]


@pytest.mark.parametrize(("name", "make"), NO_FILES)
def test_what_is_no_file(
    valid: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """A FIFO nobody writes to, and a device without an end, would be waited for for ever."""
    run = tmp_path / "run"
    shutil.copytree(valid, run)
    (run / name).unlink()
    make(run / name)
    # As BASE it is read first, and the other one not at all.
    cgbench("compare", run, valid).refused(2, f"{run / name}: ", "damaged")


def test_a_run_whose_name_is_not_utf8_is_refused(valid: Path, tmp_path: Path) -> None:
    run = tmp_path / os.fsdecode(b"r\xffn")
    shutil.copytree(valid, run)
    cgbench("compare", run, valid).refused(2, rf"{tmp_path}/r\xffn: is not UTF-8")


def test_a_record_that_is_too_large_is_not_read(valid: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(valid, run)
    os.truncate(run / "run.json", 10**12)
    file = run / "run.json"
    cgbench("compare", run, valid).refused(2, f"{file}: missing or damaged: ", "at most 16,000,000")


def test_few_bytes_of_many_rows_are_not_read(valid: Path, tmp_path: Path) -> None:
    from cgbench.rundir import parquet_file

    run = tmp_path / "run"
    shutil.copytree(valid, run)
    rows = pq.read_metadata(run / "samples.parquet").num_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_file, "MAX_ROWS", rows - 1)
        cgbench("compare", valid, run).refused(2, "samples.parquet: damaged: more than")
