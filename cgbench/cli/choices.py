"""List how results are printed. What is measured is chosen by ``cgbench.request.choices``."""

from enum import StrEnum


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
