"""``cgbench prompts`` writes the named prompt sets as files, for machines without network."""

from pathlib import Path
from typing import Annotated

import typer

from cgbench.cli.bench_flags import Debug
from cgbench.cli.values import parse_names
from cgbench.errors import BadInputError
from cgbench.inputs import check_known
from cgbench.workload.prompt_files import to_jsonl
from cgbench.workload.prompt_sets import PROMPT_SETS, PromptSet, read_set


def prompts(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where NAME.jsonl go. It is made if need be.")
    ],
    sets: Annotated[
        str,
        typer.Option("--prompts", help="The sets to write. Their packages must be installed."),
    ] = ",".join(PROMPT_SETS),
    debug: Debug = False,
) -> None:
    """Write the named prompt sets to FOLDER, which CGBENCH_PROMPTS names then.

    Exit code 2: a set is not installed or not the one known, or FOLDER cannot be written.
    """
    names = parse_names(sets)
    check_known("--prompts", names, PROMPT_SETS)
    # All of them are read before one is written.
    texts = {name: read_set(PROMPT_SETS[name]) for name in names}
    for name in names:
        typer.echo(_write(PROMPT_SETS[name], texts[name], folder))


def _write(prompt_set: PromptSet, texts: list[str], folder: Path) -> str:
    """Write ``NAME.jsonl`` in ``folder``, and return what to print of it."""
    file = folder / prompt_set.jsonl
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(to_jsonl(texts), encoding="utf-8", newline="\n")
    except OSError as error:
        raise BadInputError(f"FOLDER {folder}: {error.strerror}") from error
    return f"{file}: {len(texts)} prompts of {prompt_set.requirement}, {prompt_set.licence}"
