"""Every script starts: each module is imported, and each script and subcommand prints its help."""

import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
FOLDERS = (SCRIPTS / "training", SCRIPTS / "trials")
FILES = {path.stem: path for folder in FOLDERS for path in folder.glob("*.py")}
NAMES = sorted(FILES)
MODULES = sorted(
    f"{package.parent.name}.{path.stem}"
    for folder in FOLDERS
    for package in folder.glob("*/__init__.py")
    for path in package.parent.glob("*.py")
    if path.name != "__init__.py"
)

# Their signatures are torch's types.
NEED_TORCH = {
    "bench_attention",
    "bench_experts",
    "bench_fp8",
    "bench_latent",
    "bench_linear",
    "bench_persistent",
    "bench_stream",
    "bench_recurrent",
    "bench_route",
    "bench_sums",
}
SUBCOMMANDS = re.compile(r"\{([a-z,]+)\} \.\.\.")

HELP_LOADS_TORCH = """
import os, runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    sys.path.insert(0, os.path.dirname(path))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, path
    assert "torch" not in sys.modules, f"{path} loads torch"
"""


def help_of(name: str, *command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a script prints for ``--help``, run in this process as a command would run it."""
    path = FILES[name]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", [str(path), *command, "--help"])
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_help_is_printed_and_nothing_else_is_done(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = help_of(name, capsys=capsys)
    assert text.startswith(f"usage: {name}.py [-h]")
    commands = SUBCOMMANDS.search(text)
    for command in commands[1].split(",") if commands else ():
        usage = f"usage: {name}.py {command} [-h]"
        assert help_of(name, command, capsys=capsys).startswith(usage)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_of_the_scripts_is_imported(module: str) -> None:
    importlib.import_module(module)


def test_help_waits_for_no_torch() -> None:
    """All of it in one process, which ends at the first that loads torch."""
    light = [FILES[name] for name in NAMES if name not in NEED_TORCH]
    command = [sys.executable, "-c", HELP_LOADS_TORCH, *light]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_folders_page_has_a_row_and_a_command_for_each_script(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
    scripts = sorted(path.name for path in folder.glob("*.py"))
    assert sorted(rows) == scripts
    commands = set(re.findall(r"^    python scripts/(\w+/\w+\.py)", text, re.MULTILINE))
    assert commands == {f"{folder.name}/{name}" for name in scripts}
