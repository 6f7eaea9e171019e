"""The recipes as they stand in the repository, and a place to run their commands in."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.command import COLOURING
from tests.support.forkserver import PRELOADED
from tests.support.quick_python import quick_python

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "cgbench" / "action.yml"
GATE = ROOT / ".github" / "workflows" / "gate.yml"
PAGE = ROOT / "docs" / "ci.md"

# Appended to the words of every `cgbench run`, where the last of a flag counts: a CPU's size.
SMALL = (
    "--device cpu --spec-tokens 1 --batch-sizes 1,2 --iterations 4 --max-time 0 "
    "--max-new-tokens 8 --context-len 12"
)

CGBENCH = """\
#!/usr/bin/env bash
echo "cgbench $*" >>"$CALLS"
if [ "$1" = run ]; then
    shift
    set -- run "$TINY" "$@" $SMALL --prompts "$PROMPTS"
fi
exec "$PYTHON" -m cgbench "$@"
"""

# pip is not run here, for it would fetch every dependency.
PYTHON = """\
#!/usr/bin/env bash
echo "python $*" >>"$CALLS"
"""


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language in the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def resolved(text: str, inputs: Mapping[str, str]) -> str:
    """``${{ inputs.x }}`` as the runner fills it in; nothing else is used."""
    filled = re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: inputs[found[1]], text)
    assert "${{" not in filled, filled
    return filled


@dataclass(frozen=True)
class Runner:
    """A shell in a folder of its own, with ``cgbench`` on its path: a tiny model on the CPU."""

    folder: Path
    env: dict[str, str]

    @classmethod
    def make(cls, folder: Path, tiny: Path, prompts: Path) -> "Runner":
        bin_folder = folder / "bin"
        bin_folder.mkdir(parents=True)
        for name, text in (("cgbench", CGBENCH), ("python", PYTHON)):
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        env = {name: value for name, value in os.environ.items() if name not in COLOURING}
        env |= {
            "PATH": f"{bin_folder}:{env['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHON": str(quick_python(*PRELOADED)),
            "TINY": str(tiny),
            "PROMPTS": str(prompts),
            "SMALL": SMALL,
            "CALLS": str(folder / "calls"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        work = folder / "work"
        work.mkdir()
        subprocess.run(["git", "init", "--quiet"], cwd=work, check=True)
        return cls(work, env)

    def __call__(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        """As GitHub's runner and GitLab's do: ends at the first command that fails."""
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        return Path(self.env["CALLS"]).read_text().splitlines()


def run_action(runner: Runner, inputs: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The composite action's steps, until one fails."""
    action = load(ACTION)
    defaults = {name: each.get("default", "") for name, each in action["inputs"].items()}
    given = {**defaults, **inputs}
    assert given.keys() == defaults.keys()
    for step in action["runs"]["steps"]:
        env = {name: resolved(value, given) for name, value in step.get("env", {}).items()}
        done = runner(step["run"], **env, GITHUB_ACTION_PATH=str(ACTION.parent))
        if done.returncode:
            break
    return done
