"""Costs from a run whose numbers no measurement gives: refused by the file's name."""

import csv
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cgbench.errors import BadInputError, RunDirectoryError
from cgbench.planning import PlanRequest
from cgbench.planning.study import requests_for, savings, study
from cgbench.rundir.run_costs import read_costs
from tests.tables.test_plan import written_run

SPEC_TOKENS = 2


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no test changes."""
    return written_run(tmp_path_factory.mktemp("example") / "run")


def changed(file: Path, column: str, value: str) -> None:
    """Writes the value to every row that has one."""
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    for row in rows:
        if row[column]:
            row[column] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write_text(text.getvalue())


WRONG = [
    ("latency.csv", "iteration_p50_ms", value) for value in ("-5.0", "0.0", "inf", "", "1e300")
] + [
    ("latency.csv", "bucket", "0"),
    ("latency.csv", "bucket", "-4"),
    ("latency.csv", "bucket", "4000000"),
    ("capture.csv", "bucket", "0"),
    ("capture.csv", "bucket", "-4"),
    ("capture.csv", "first_replay_ms", "-1e9"),
    ("capture.csv", "first_replay_ms", ""),
    ("capture.csv", "capture_ms", "inf"),
]


@pytest.mark.parametrize(("name", "column", "value"), WRONG)
def test_a_number_that_no_measurement_gives(
    name: str, column: str, value: str, example: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(example, tmp_path / "run"))
    changed(path / name, column, value)
    with pytest.raises(RunDirectoryError) as caught:
        read_costs(path, SPEC_TOKENS)
    assert str(caught.value).startswith(f"{path / name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["1e-6", "1e9"])
def test_what_is_within_the_limits_is_planned_with(
    value: str, example: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(example, tmp_path / "run"))
    for name in ("p50", "p90", "p99"):
        changed(path / "latency.csv", f"iteration_{name}_ms", value)
    assert read_costs(path, SPEC_TOKENS).graph(4) == float(value)


FIELDS = [
    *[("latency.csv", column) for column in ("iteration_p50_ms", "bucket", "batch_size", "mode")],
    *[("capture.csv", column) for column in ("bucket", "pool_bytes", "driver_bytes", "warmup_ms")],
    *[("capture.csv", column) for column in ("first_replay_ms", "phase", "spec_tokens")],
]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(FIELDS),
    value=st.one_of(
        st.integers().map(str),
        st.integers(-9, 9).map(str),
        st.floats().map(str),
        st.text("0123456789.-e,\"' ainf", max_size=12),
    ),
)
def test_any_number_in_a_run_is_planned_with_or_refused_by_name(
    field: tuple[str, str], value: str, example: Path, tmp_path: Path
) -> None:
    name, column = field
    path = tmp_path / "run"
    shutil.copytree(example, path, dirs_exist_ok=True)
    changed(path / name, column, value)
    try:
        costs = read_costs(path, SPEC_TOKENS)
        base = PlanRequest(0, 16, "explicit", costs=costs, max_graphs=3)
        assert savings(study(requests_for(base, ["all"], [SPEC_TOKENS])))
    except BadInputError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
