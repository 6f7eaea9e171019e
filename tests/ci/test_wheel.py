"""The wheel runs outside of the repository, and the default model is in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

STARTED = """
import cgbench
from cgbench.cli import main
print(cgbench.__file__, cgbench.__version__)
main()
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the wheel was installed in. Its dependencies stay where they are."""
    sources, wheels, site = (tmp_path_factory.mktemp(name) for name in ("from", "wheels", "site"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(
        ROOT / "cgbench", sources / "cgbench", ignore=shutil.ignore_patterns("__pycache__")
    )
    building = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, sources]
    subprocess.run([*PIP, *building], check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    into = ["install", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel]
    subprocess.run([*PIP, *into], check=True, capture_output=True)
    return site


def test_run_outside_of_the_repository(installed: Path, tmp_path: Path) -> None:
    """The run loads the packaged model, and its record names this version."""
    run = (
        "run --device cpu --spec-tokens 1 --batch-sizes 1 --scopes eager --iterations 2 "
        "--max-time 0 --max-new-tokens 8 --context-len 12 --num-prompts 1 --output out"
    )
    begun = subprocess.run(
        [sys.executable, "-c", STARTED, *run.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        check=True,
        capture_output=True,
        text=True,
    )
    file, version = begun.stdout.splitlines()[0].split()
    assert Path(file).parent == installed / "cgbench"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["cgbench_version"] == version
    assert record["model"]["label"] == "default"
