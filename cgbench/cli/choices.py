"""List how results are printed. What is measured is chosen by ``cgbench.request.choices``."""

from enum import StrEnum
from typing import TypeVar

from cgbench.errors import BadInputError

F = TypeVar("F", bound=StrEnum)


class Format(StrEnum):
    """A ``Format`` is a form that ``cgbench plan`` prints in."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


class CompareFormat(StrEnum):
    """A ``CompareFormat`` is a form that ``cgbench compare`` prints in."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"
    GITHUB = "github"
    JUNIT = "junit"
    BENCHMARK_JSON = "benchmark-json"


def chosen_format(given: F | None, default: F, *, as_json: bool) -> F:
    """Return the form to print in, of which ``--json`` names one in short.

    Raise ``BadInputError`` for ``--json`` beside another ``--format``.
    """
    if not as_json:
        return default if given is None else given
    short = type(default)("json")
    if given not in (None, short):
        raise BadInputError(f"--json: is --format {short}, not --format {given}. Drop one")
    return short
