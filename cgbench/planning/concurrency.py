"""Describe a workload: how often each number of requests decodes together.

No more than max_num_seqs requests run at once, and the others wait. So a histogram's weight above
max_num_seqs counts as max_num_seqs. Iterations with no request running are left out.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any, Self

from cgbench.errors import BadInputError
from cgbench.inputs import parse_json, read_text
from cgbench.planning.plan_request import MAX_BATCH_SIZE

NAMED = "geometric:MEAN, uniform:FIRST-LAST or constant:N"

# A geometric tail is cut where what is left of it weighs less than this.
_NEGLIGIBLE = 1e-12
_WORTH_A_WORD = 5e-4
_MAX_MEAN = 10_000
_MAX_BYTES = 64_000_000
_LONGEST_SHOWN = 40
_JSON_FORM = "must be an object of batch size -> weight, or an array of batch sizes"


@dataclass(frozen=True)
class Concurrency:
    """A ``Concurrency`` is a workload: a relative weight for each batch size.

    Batch sizes ascend, and every weight is above 0. Weights need not sum to 1. ``name`` is what
    messages and tables call the workload.
    """

    weights: tuple[tuple[int, float], ...]
    name: str = ""

    @classmethod
    def of(cls, weights: Iterable[tuple[int, float]], name: str = "") -> Self:
        """Build a workload from pairs, adding up repeated batch sizes and leaving out batch size 0.

        Raise ``BadInputError``, beginning with ``name``, for a batch size or a weight below 0.
        Raise it too if the weights sum to no number, or if nothing is left.
        """
        total: Counter[int] = Counter()
        for size, weight in weights:
            if size < 0 or not (weight >= 0 and isfinite(weight)):
                raise BadInputError(
                    f"{name}: batch size {size}: weight {weight} must be at least 0"
                )
            total[size] += weight  # type: ignore[assignment]  # Counter adds any number.
        kept = sorted((size, weight) for size, weight in total.items() if size and weight)
        if not kept:
            raise BadInputError(f"{name}: no batch size has a weight")
        if not isfinite(sum(weight for _, weight in kept)):
            raise BadInputError(f"{name}: the weights sum to no number. Make them smaller")
        return cls(tuple(kept), name)

    @classmethod
    def uniform(cls, first: int, last: int) -> Self:
        """Return the workload in which all batch sizes from ``first`` to ``last`` are equally
        frequent.
        """
        return cls(tuple((size, 1) for size in range(first, last + 1)), f"uniform:{first}-{last}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the workload that ``--concurrency`` states: a named distribution, or a file's.

        A file holds a JSON object or a CSV of batch_size -> weight. It may also hold counts of
        running requests, one a line or as a JSON array. Raise ``BadInputError`` naming the flag or
        the file.
        """
        kind, colon, value = text.partition(":")
        if colon and kind in _NAMED_KINDS:
            return cls.of(_NAMED_KINDS[kind](value, f"--concurrency {text}"), text)
        return cls.read(Path(text))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return the workload in ``file``, which holds a histogram or a log as ``parse`` describes.

        Raise ``BadInputError`` naming the file.
        """
        name = f"--concurrency {_printable(file)}"
        if _printable(file) != str(file):
            raise BadInputError(f"{name}: the file's name must be UTF-8")
        if not os.path.isfile(file):
            raise BadInputError(f"{name}: cannot be read. Give a file, or {NAMED}")
        text = read_text(name, file, _MAX_BYTES, encoding="utf-8-sig")
        is_json = text.lstrip().startswith(("{", "["))
        weights = _from_json(text, name) if is_json else _from_lines(text, name)
        return replace(cls.of(weights, name), name=str(file))

    def over(self, max_batch_size: int) -> list[float]:
        """Return the weights of 1..max_batch_size, scaled to sum to 1.

        The weights above max_batch_size count as those of max_batch_size.
        """
        found = [0.0] * max_batch_size
        for size, weight in self.weights:
            found[min(size, max_batch_size) - 1] += weight
        total = sum(found)
        return [weight / total for weight in found]

    def words(self, max_batch_size: int) -> str:
        """Return the workload's name, and that ``over`` counts larger batch sizes as the largest.

        A share of them that rounds to 0.0 % is not worth a word.
        """
        total = sum(weight for _, weight in self.weights)
        above = sum(weight for size, weight in self.weights if size > max_batch_size)
        if above < _WORTH_A_WORD * total:
            return self.name
        return f"{self.name}, more than {max_batch_size} counted as {max_batch_size}"


def _geometric(value: str, flag: str) -> list[tuple[int, float]]:
    """Return weight (1 - 1/mean)^(n - 1) for n = 1, 2, .., because each request goes on with equal
    odds.
    """
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
    if not (first.isdecimal() and last.isdecimal() and 1 <= float(first) <= float(last)):
        raise BadInputError(f"{flag}: must be uniform:FIRST-LAST, such as uniform:1-64")
    if float(last) > _MAX_MEAN:
        raise BadInputError(f"{flag}: batch sizes above {_MAX_MEAN} are not counted")
    return [(size, 1.0) for size in range(int(first), int(last) + 1)]


def _constant(value: str, flag: str) -> list[tuple[int, float]]:
    if not value.isdecimal() or not 1 <= float(value) <= MAX_BATCH_SIZE:
        raise BadInputError(
            f"{flag}: must be a batch size of 1 to {MAX_BATCH_SIZE}, such as constant:6"
        )
    return [(int(value), 1.0)]


_NAMED_KINDS = {"geometric": _geometric, "uniform": _uniform, "constant": _constant}


def _printable(file: Path) -> str:
    """Return the path in a form that a message can show, whatever bytes it is made of."""
    return str(file).encode("utf-8", "backslashreplace").decode("utf-8")


def _from_json(text: str, name: str) -> list[tuple[int, float]]:
    found = parse_json(name, text)
    pairs = found.items() if isinstance(found, dict) else [(size, 1) for size in found]
    try:
        return [(_whole(size), _number(weight)) for size, weight in pairs]
    except ValueError as error:
        raise BadInputError(f"{name}: {_JSON_FORM}: {error}") from error


def _from_lines(text: str, name: str) -> list[tuple[int, float]]:
    try:
        rows = [
            row for row in csv.reader(text.splitlines(), strict=True) if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise BadInputError(f"{name}: not CSV: {error}") from error
    if rows and _is_heading(rows[0]):
        del rows[0]
    return [_pair(row, name) for row in rows]


def _is_heading(row: list[str]) -> bool:
    """Check that a first row names its columns, as ``batch_size,weight`` does."""
    return all(cell.strip().isidentifier() for cell in row)


def _pair(row: list[str], name: str) -> tuple[int, float]:
    try:
        size, weight = (*row, "1") if len(row) == 1 else row
        return _whole(size), _number(weight)
    except ValueError as error:
        raise BadInputError(
            f"{name}: {_shown(','.join(row))}: must be batch_size,weight "
            "or one count of running requests"
        ) from error


def _whole(value: Any) -> int:
    """Return a batch size from ``8``, ``8.0`` or ``"8"``.

    Raise ``ValueError`` for any other value.
    """
    number = _number(value)
    if not number.is_integer():
        raise ValueError(f"{_shown(value)} is not a whole number")
    return int(number)


def _number(value: Any) -> float:
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{_shown(value)} is not a number")


def _shown(value: Any) -> str:
    """Return a value for a message: on one line, and cut if it is long."""
    text = ascii(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}.."
