"""A workload: how often each number of requests decodes together.

No more than max_num_seqs requests run at once, the others wait; so what a histogram holds above
max_num_seqs counts as max_num_seqs. Iterations with no request running are left out.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self

from cgbench.errors import BadInputError

NAMED = "geometric:MEAN, uniform:FIRST-LAST or constant:N"

# A geometric tail is cut where what is left of it weighs less than this.
_NEGLIGIBLE = 1e-12
_MAX_MEAN = 10_000


@dataclass(frozen=True)
class Concurrency:
    """Relative weights of batch sizes, ascending, every weight above 0. They need not sum to 1."""

    weights: tuple[tuple[int, float], ...]
    name: str = ""

    @classmethod
    def of(cls, weights: Iterable[tuple[int, float]], name: str = "") -> Self:
        """Add up repeated batch sizes and leave out 0.

        Raises ``BadInputError``, beginning with ``name``, for a batch size or a weight below 0,
        and where nothing is left.
        """
        total: Counter[int] = Counter()
        for size, weight in weights:
            if size < 0 or not (weight >= 0 and isfinite(weight)):
                raise BadInputError(f"{name}: batch size {size}, weight {weight}: not below 0")
            total[size] += weight  # type: ignore[assignment]  # Counter adds any number.
        kept = sorted((size, weight) for size, weight in total.items() if size and weight)
        if not kept:
            raise BadInputError(f"{name}: no batch size has a weight")
        return cls(tuple(kept), name)

    @classmethod
    def uniform(cls, first: int, last: int) -> Self:
        return cls(tuple((size, 1) for size in range(first, last + 1)), f"uniform:{first}-{last}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """A named distribution, or the file of that name.

        A file holds a JSON object or a CSV of batch_size -> weight, or running-request counts,
        one a line or as a JSON array. Raises ``BadInputError`` naming the flag or the file.
        """
        kind, colon, value = text.partition(":")
        if colon and kind in _NAMED_KINDS:
            return cls.of(_NAMED_KINDS[kind](value, f"--concurrency {text}"), text)
        return cls.read(Path(text))

    @classmethod
    def read(cls, file: Path) -> Self:
        """The histogram or the log in ``file``; see ``parse``."""
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"--concurrency {file}: cannot be read; give a file, or {NAMED}"
            ) from error
        is_json = text.lstrip().startswith(("{", "["))
        return cls.of(_from_json(text, file) if is_json else _from_lines(text, file), str(file))

    def over(self, max_batch_size: int) -> list[float]:
        """Weights of 1..max_batch_size, summing to 1; those above it count as the last."""
        found = [0.0] * max_batch_size
        for size, weight in self.weights:
            found[min(size, max_batch_size) - 1] += weight
        total = sum(found)
        return [weight / total for weight in found]


def _geometric(value: str, flag: str) -> list[tuple[int, float]]:
    """Weight (1 - 1/mean)^(n - 1) for n = 1, 2, ...: each request goes on with equal odds."""
    try:
        mean = float(value)
    except ValueError:
        mean = 0.0
    if not 1 <= mean <= _MAX_MEAN:
        raise BadInputError(f"{flag}: the mean must be a number from 1 to {_MAX_MEAN}")
    stay, weight, found = 1 - 1 / mean, 1.0, list[tuple[int, float]]()
    while weight > _NEGLIGIBLE:
        found.append((len(found) + 1, weight))
        weight *= stay
    return found


def _uniform(value: str, flag: str) -> list[tuple[int, float]]:
    first, _, last = value.partition("-")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise BadInputError(f"{flag}: must be uniform:FIRST-LAST, such as uniform:1-64")
    if int(last) > _MAX_MEAN:
        raise BadInputError(f"{flag}: batch sizes above {_MAX_MEAN} are not counted")
    return [(size, 1.0) for size in range(int(first), int(last) + 1)]


def _constant(value: str, flag: str) -> list[tuple[int, float]]:
    if not value.isdecimal() or int(value) < 1:
        raise BadInputError(f"{flag}: must be a batch size of at least 1, such as constant:6")
    return [(int(value), 1.0)]


_NAMED_KINDS = {"geometric": _geometric, "uniform": _uniform, "constant": _constant}


def _from_json(text: str, file: Path) -> list[tuple[int, float]]:
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise BadInputError(f"--concurrency {file}: not JSON: {error}") from error
    pairs = found.items() if isinstance(found, dict) else [(size, 1) for size in found]
    try:
        return [(_whole(size), float(weight)) for size, weight in pairs]
    except (TypeError, ValueError) as error:
        raise BadInputError(
            f"--concurrency {file}: must be an object of batch size -> weight, or an array of "
            f"batch sizes: {error}"
        ) from error


def _from_lines(text: str, file: Path) -> list[tuple[int, float]]:
    rows = [row for row in csv.reader(text.splitlines()) if any(map(str.strip, row))]
    if rows and _is_heading(rows[0]):
        del rows[0]
    return [_pair(row, file) for row in rows]


def _is_heading(row: list[str]) -> bool:
    """Whether a first row names its columns, as ``batch_size,weight`` does."""
    return all(cell.strip().isidentifier() for cell in row)


def _pair(row: list[str], file: Path) -> tuple[int, float]:
    try:
        size, weight = (*row, "1") if len(row) == 1 else row
        return _whole(size), float(weight)
    except ValueError as error:
        raise BadInputError(
            f"--concurrency {file}: {','.join(row)!r}: must be batch_size,weight "
            "or one count of running requests"
        ) from error


def _whole(value: Any) -> int:
    """A batch size from ``8``, ``8.0`` or ``"8"``."""
    number = float(value)
    if not number.is_integer():
        raise ValueError(f"{value} is not a whole number")
    return int(number)
