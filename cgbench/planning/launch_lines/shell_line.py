"""Split a shell's line into the words of its commands."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.planning.launch_lines.word_list import word_list

_OPERATORS = ";|&"
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_TO_A_NUMBER = re.compile(r"[0-9]?>&[0-9-]")
_REDIRECT = re.compile(r"([0-9]?[<>]>?)(.*)", re.DOTALL)
_SHELLS = {"bash", "sh", "zsh", "dash", "ash"}
# These run a command that is one of their words.
_RUNNERS = {"ssh", "tmux", "screen", "su", "eval", "watch"}
_MAX_NESTED = 4

# A backslash, not itself escaped, with blanks between it and the line's end.
_SPACED_END = re.compile(r"(?<!\\)((?:\\\\)*)\\[ \t\u00a0]+(?=\r?\n|\Z)")


def commands(label: str, line: str, depth: int = 0) -> list[list[str]]:
    """Return the words of each command of a line, without redirections.

    A command that is an argument of a shell (``bash -c '..'``) or of ``ssh`` comes after their own.
    A list of words, as containers' files hold it, is one command. Raise ``BadInputError`` naming
    ``label``.
    """
    listed = None if depth else word_list(line)
    split = _split(_words(label, line)) if listed is None else iter([listed])
    found = list[list[str]]()
    for words in split:
        own = [*_without_redirects(words)] if listed is None else words
        found.append(own)
        if depth < _MAX_NESTED:
            for nested in _nested(own):
                found += commands(label, nested, depth + 1)
    if not found and not depth:
        raise BadInputError(f"{label}: is empty. Give the line that starts the engine")
    return found


def assignments(found: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the environment variables that a line sets, before a command or by ``export``."""
    words = [word for command in found for word in command if _ASSIGNMENT.fullmatch(word)]
    pairs = (word.partition("=") for word in words)
    return {name: value for name, _, value in pairs}


def spaced_ends(line: str) -> Iterator[str]:
    """Yield a warning for each backslash that a blank keeps from joining its line to the next.

    The words of both lines are read as one command all the same.
    """
    for found in _SPACED_END.finditer(line):
        number = line.count("\n", 0, found.start()) + 1
        yield f"a space follows \\ at the end of line {number}, where a shell ends the command"


def _words(label: str, line: str) -> list[str]:
    """Return words and operators. A line's end is a blank, and ends a comment."""
    joined = re.sub(r"\\\r?\n", " ", _SPACED_END.sub(r"\1 ", line))
    one_line = _TO_A_NUMBER.sub("", joined).replace("&>", ">")
    lexer = shlex.shlex(one_line, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace_split = True
    lexer.commenters = "#" if "\n" in line else ""
    try:
        return [*lexer]
    except ValueError as error:
        raise BadInputError(f"{label}: {str(error).lower()}") from error


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    command = list[str]()
    for word in [*words, ";"]:
        if word and not word.strip(_OPERATORS):
            if command:
                yield command
            command = []
        else:
            command.append(word)


def _without_redirects(words: Sequence[str]) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        found = _REDIRECT.fullmatch(word)
        if found is None:
            yield word
        elif not found[2]:
            next(rest, None)


def _nested(words: Sequence[str]) -> Iterator[str]:
    """Yield the commands that a shell or another runner among the words is given to run."""
    names = [Path(word).name for word in words]
    if _SHELLS & {*names}:
        pairs = pairwise(words)
        told = (text for option, text in pairs if re.fullmatch(r"-[a-z]*c", option))
        yield from islice(told, 1)
    elif at := [i for i, name in enumerate(names) if name in _RUNNERS]:
        yield from (word for word in words[at[0] + 1 :] if len(word.split()) > 1)
