"""What may be imported where: the light commands must answer at once, with no GPU software."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers"}
TABLES = {"pandas", "pyarrow", "rich"}


def imported_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter that has imported ``modules``."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["cgbench.words", "cgbench.planning", "cgbench.rundir.schema"])
def test_planning_and_schema_need_the_standard_library_alone(module: str) -> None:
    assert not imported_by(module) & (HEAVY | TABLES)


def test_planning_needs_no_numpy_but_for_budgets() -> None:
    assert "numpy" not in imported_by("cgbench.planning.study", "cgbench.planning.flags")


def test_plan_command_needs_no_pandas() -> None:
    """Importing pandas takes longer than all of planning; matplotlib is an extra."""
    assert not imported_by("cgbench.cli.plan") & (HEAVY | {"pandas", "numpy", "matplotlib"})


def test_report_needs_no_torch() -> None:
    modules = ("cgbench.rundir.store", "cgbench.rundir.summary", "cgbench.tables.latency")
    assert not imported_by(*modules) & HEAVY


def test_compare_needs_no_torch_and_its_help_no_pandas() -> None:
    modules = ("gate.comparison", "rundir.thin", "tables.comparison", "gate.ci_formats")
    assert not imported_by(*(f"cgbench.{name}" for name in modules)) & HEAVY
    assert not imported_by("cgbench.cli.compare") & (HEAVY | {"pandas", "numpy", "scipy"})
