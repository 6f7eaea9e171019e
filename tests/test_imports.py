"""What may be imported where: rooms in their order, and light commands without GPU software."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cgbench"

ROOMS = (
    *("words", "errors", "inputs", "statistics", "progress"),
    *("planning", "request", "workload"),
    *("kernels", "parallel", "models", "engine", "compile"),
    *("floor", "checks", "rundir", "measure", "engines"),
    *("advice", "gate", "endpoint", "tables", "door", "cli"),
)
"""A module imports from its own room and from those before it. docs/architecture.md draws them."""

WITHOUT_TORCH = (
    *("words", "errors", "inputs", "statistics", "progress"),
    *("planning", "request", "rundir", "advice", "gate", "endpoint", "tables"),
)
MAX_FILES = 24

# A command and a table may bear the name of what they show.
BEARS_ITS_NOUN = {"cli", "tables"}

RANKS_JOINED = "cgbench.parallel.ranks.joined"

HEAVY = {"torch", "transformers"}
TABLES = {"pandas", "pyarrow", "rich"}


def module_name(file: Path) -> str:
    dotted = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


FILES = {module_name(file): file for file in sorted(PACKAGE.glob("**/*.py"))}
MODULES = sorted(FILES.keys() - {"cgbench", "cgbench.__main__"})


def room_of(module: str) -> str:
    return module.split(".")[1]


@cache
def nodes_of(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a module's source, which several tests look through."""
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and module of every import of this package: at the top, in a function, or for types."""
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # A name may be a module too: ``from cgbench import errors``.
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in found]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("cgbench."))


def against_the_order(module: str, source: str) -> list[str]:
    """Lines of ``source`` that import from a room below the module's own."""
    own = ROOMS.index(room_of(module))
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports_of(source)
        if ROOMS.index(room_of(name)) > own
    ]


def test_every_module_lies_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} <= {*ROOMS}


def test_no_module_imports_against_the_order_of_rooms() -> None:
    found = [line for module in MODULES for line in against_the_order(module, source_of(module))]
    assert found == []


def source_of(module: str) -> str:
    return FILES[module].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "source",
    [
        "import cgbench.cli.app",
        "from cgbench import errors, cli",
        "from cgbench.cli.app import main",
        "from cgbench.cli import app",
        "def late():\n    from cgbench.cli.app import main",
        "if TYPE_CHECKING:\n    from cgbench.cli.app import main",
    ],
)
def test_each_form_of_import_is_seen(source: str) -> None:
    assert len(against_the_order("cgbench.tables.plan", source)) == 1
    assert against_the_order("cgbench.cli.plan", source) == []


def test_no_package_has_more_files_than_a_reader_can_hold() -> None:
    sizes = {folder: len([*folder.glob("*.py")]) for folder in {f.parent for f in FILES.values()}}
    assert {folder.name: size for folder, size in sizes.items() if size > MAX_FILES} == {}


def test_no_two_modules_bear_one_name() -> None:
    by_name = defaultdict(list)
    for module in MODULES:
        if room_of(module) not in BEARS_ITS_NOUN:
            by_name[module.rpartition(".")[2]].append(module)
    assert [modules for modules in by_name.values() if len(modules) > 1] == []


def test_ranks_are_handed_in_and_asked_for_by_collectives_alone() -> None:
    """``joined`` is what the process has joined: a global, as torch.distributed's groups are."""
    asks = {m for m in MODULES for _, name in names_of(source_of(m)) if name == RANKS_JOINED}
    assert asks == {"cgbench.parallel.collectives"}


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``source`` imports from a module."""
    for node in nodes_of(source):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def test_rooms_without_torch_import_none() -> None:
    """All of them in one fresh interpreter, which prints the first module that loads it."""
    light = [module for module in MODULES if room_of(module) in WITHOUT_TORCH]
    code = (
        "import importlib, sys\n"
        f"for name in {[*light, 'cgbench.cli.app']}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = {HEAVY} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imported_by(*modules: str) -> set[str]:
    """Top-level packages in a fresh interpreter that has imported ``modules``."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_planning_schema_and_clock_need_the_standard_library_alone() -> None:
    light = ("words", "planning", "rundir.schema", "measure.run_clock")
    assert not imported_by(*(f"cgbench.{name}" for name in light)) & (HEAVY | TABLES)


def test_planning_needs_no_numpy_but_for_budgets() -> None:
    assert "numpy" not in imported_by("cgbench.planning.study", "cgbench.planning.flags")


def test_plan_command_needs_no_pandas() -> None:
    """Importing pandas takes longer than all of planning; matplotlib is an extra."""
    assert not imported_by("cgbench.cli.plan") & (HEAVY | {"pandas", "numpy", "matplotlib"})


def test_compare_needs_no_torch_and_its_help_no_pandas() -> None:
    modules = ("gate.comparison", "rundir.thin", "tables.comparison", "gate.ci_formats")
    assert not imported_by(*(f"cgbench.{name}" for name in modules)) & HEAVY
    assert not imported_by("cgbench.cli.compare") & (HEAVY | {"pandas", "numpy", "scipy"})
