"""The real command line parses every command of README and docs, and prints what stands there."""

import re
from functools import cache
from pathlib import Path

import pytest
import typer

from cgbench.cli.app import app
from tests.docs.pages import PAGES, ROOT, Shown, commands
from tests.support.command import Done, cgbench

COMMANDS = [shown for page in PAGES for shown in commands(page)]
WITH_OUTPUT = sorted({shown for shown in COMMANDS if shown.output}, key=str)
SECONDS = re.compile(r"\bin \d+\.\d s\b")


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 40 and len(WITH_OUTPUT) > 8


@pytest.mark.parametrize("shown", COMMANDS, ids=str)
def test_a_command_is_parsed(shown: Shown) -> None:
    name, *words = shown.words
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, words, resilient_parsing=False)
    assert context.params


@cache
def done_by(words: tuple[str, ...]) -> Done:
    """A command that stands on two pages runs once."""
    return cgbench(*words)


@pytest.mark.parametrize("shown", WITH_OUTPUT, ids=str)
def test_a_command_prints_what_stands_under_it(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``...`` leaves lines out, and a line may leave columns out at its end."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    done = done_by(shown.words)
    printed = iter([plain(line) for line in (done.stdout + done.stderr).splitlines()])
    for line in map(plain, shown.output):
        assert line == "..." or any(each.startswith(line) for each in printed), done


def plain(line: str) -> str:
    """A line with single blanks, without the seconds that it took."""
    return SECONDS.sub("in some s", " ".join(line.split()))


# What a CPU, a machine without these things, or the tiny model does not have: FP8 weights, and as
# many tokens as a page drafts.
NOT_HERE = {"--tp", "--compile", "--head", "--attention", "--nvtx", "--cold-l2", "--resume"}
NOT_HERE |= {"--endpoint", "--quant", "--draft-vocab"}
# Appended, where the last of a flag counts: the size of a test.
SMALL = {
    "run": "--device cpu --dtype float32 --spec-tokens 1 --batch-sizes 2 --iterations 2 "
    "--max-time 0 --max-new-tokens 8 --context-len 12",
    "audit": "--device cpu --dtype float32 --spec-tokens 1 --max-num-seqs 2 --max-new-tokens 4 "
    "--num-prompts 2 --checks equality",
}
REPLACED = re.compile(
    r"^(\w+)(?: [^-\s]\S*)?|--(?:output|repro|prompts|device|dtype|spec-tokens|batch-sizes|"
    r"iterations|max-time|max-new-tokens|context-len|max-num-seqs|num-prompts|checks) \S+"
)


def as_a_test(words: tuple[str, ...]) -> str:
    """A command without what a test gives it anyway, so that equal ones run once."""
    return " ".join(REPLACED.sub(r"\1", " ".join(words)).split())


LOADING = sorted(
    {
        as_a_test(shown.words)
        for shown in COMMANDS
        if shown.words[0] in SMALL and not shown.output and not NOT_HERE & {*shown.words}
    }
)
FILES = {"--costs", "--config"}
PLANNING = sorted(
    {s.words for s in COMMANDS if s.words[0] == "plan" and not s.output and not FILES & {*s.words}}
)


@pytest.mark.parametrize("words", PLANNING, ids=" ".join)
def test_a_plan_is_made(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert cgbench(*words).code == 0


@pytest.mark.parametrize("command", LOADING)
def test_a_command_runs_on_the_tiny_model(
    command: str, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    name, *rest = command.split()
    made = {"run": "--output", "audit": "--repro"}[name], tmp_path / "made"
    done = cgbench(name, tiny, *rest, *SMALL[name].split(), "--prompts", prompts, *made)
    assert done.code == 0, done.stderr
