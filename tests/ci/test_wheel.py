"""The wheel runs outside of the repository, with the default model in it, and prints plain text."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.command import COLOURING

ROOT = Path(__file__).parents[2]
# To compress the model's weights would take as long as everything else.
BUILD = """
import sys
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1], {"--build-option": ["--compression", "stored"]})
"""

STARTED = """
import cgbench
from cgbench.cli import main
print(cgbench.__file__, cgbench.__version__)
main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the wheel was unpacked in, which is how pip installs such a one. Its
    dependencies stay where they are."""
    sources, wheels, site = (tmp_path_factory.mktemp(name) for name in ("from", "wheels", "site"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(
        ROOT / "cgbench", sources / "cgbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    building = [sys.executable, "-c", BUILD, wheels]
    subprocess.run(building, cwd=sources, check=True, capture_output=True)
    (wheel,) = wheels.glob("*-none-any.whl")
    with ZipFile(wheel) as packed:
        packed.extractall(site)
    return site


def test_run_outside_of_the_repository(installed: Path, tmp_path: Path) -> None:
    """The run loads the packaged model, and its record names this version.

    It is a process of its own, whose output is piped: no colour, no cursor movement, and no trace
    of anyone's progress bar.
    """
    run = (
        "run --device cpu --spec-tokens 1 --batch-sizes 1 --scopes eager --iterations 2 "
        "--max-time 0 --max-new-tokens 8 --context-len 12 --num-prompts 1 --output out"
    )
    uncoloured = {name: value for name, value in os.environ.items() if name not in COLOURING}
    begun = subprocess.run(
        [sys.executable, "-c", STARTED, *run.split()],
        cwd=tmp_path,
        env=uncoloured | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    file, version = begun.stdout.splitlines()[0].split()
    assert Path(file).parent == installed / "cgbench"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["cgbench_version"] == version
    assert record["model"]["label"] == "default" and record["complete"]
    printed = begun.stdout + begun.stderr
    assert [c for c in printed if ord(c) < 32 and c != "\n"] == []
    assert "iteration p50 [ms]" in begun.stdout
    assert "it/s" not in begun.stderr and "%|" not in begun.stderr
    lines = begun.stderr.splitlines()
    assert lines[0].startswith("no graphs here: ") and lines[-1] == "written to out"
