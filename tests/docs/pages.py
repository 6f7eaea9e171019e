"""The pages and the commands that stand in them, and the modules of the package."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted((ROOT / "cgbench").rglob("*.py"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    ((?:\w+=\S+ )*(?:cgbench|torchrun) .*)$", re.MULTILINE)
CALLS = {"cgbench", "scripts/run"}
ENDS = {"|", "||", "&&", ";", ">"}


@cache
def tree_of(module: Path) -> ast.Module:
    """A module of the package, parsed once for all that read it."""
    return ast.parse(module.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Shown:
    """A command of a page, and the output that stands under it."""

    page: str
    words: tuple[str, ...]
    output: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def commands(page: Path) -> Iterator[Shown]:
    """Every `cgbench` command in a page's blocks and indented lines."""
    text = page.read_text(encoding="utf-8")
    for language, block in BLOCK.findall(text):
        if language == "console":
            yield from with_output(page.name, block)
        elif language in ("", "sh"):
            yield from (
                Shown(page.name, words) for line in lines_of(block) for words in parsed(line)
            )
    for line in INDENTED.findall(BLOCK.sub("", text)):
        yield from (Shown(page.name, words) for words in parsed(line))


def with_output(page: str, block: str) -> Iterator[Shown]:
    """The commands after ``$``, each with the lines below it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        line, *output = part.replace("\\\n", " ").splitlines()
        yield from (Shown(page, words, tuple(output)) for words in parsed(line))


def lines_of(block: str) -> list[str]:
    """The lines of a block, those that go on in the next one joined."""
    return block.replace("\\\n", " ").splitlines()


def parsed(line: str) -> Iterator[tuple[str, ...]]:
    """The words after ``cgbench`` or ``scripts/run`` of each command in a shell line."""
    words = shlex.split(line, comments=True)
    while CALLS & {*words}:
        start = next(index for index, word in enumerate(words) if word in CALLS)
        rest = [*takewhile(lambda word: word not in ENDS, words[start + 1 :])]
        before = ("run",) if words[start] == "scripts/run" else ()
        if (before or rest) and not {"--help", "COMMAND", "cd"} & {*rest, *words[:start]}:
            yield (*before, *rest)
        words = words[start + 1 + len(rest) :]
