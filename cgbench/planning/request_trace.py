"""Read the files that ``--concurrency`` takes: traces of requests, and logs of a server."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.inputs import read_text, shown
from cgbench.planning.concurrency import Concurrency

FLAG = "--concurrency"

_MAX_BYTES = 256_000_000
_MAX_TOKENS = 10_000_000
_NS_PER_S = 1_000_000_000
_LONGEST_NS = 10 * 365 * 24 * 3600 * _NS_PER_S

# These are the columns of public traces: Azure's (two spellings), BurstGPT's and Mooncake's.
# Plain names follow. If a file has several of them, the first one counts. Mooncake counts
# milliseconds.
_ARRIVALS = ("timestamp", "arrival", "arrival_time", "arrival_s", "arrived_at", "time")
_INPUTS: tuple[str, ...] = (
    *("contexttokens", "request_tokens", "input_length", "input_tokens", "input_len"),
    *("prompt_tokens", "prompt_len", "num_prefill_tokens"),
)
_OUTPUTS: tuple[str, ...] = (
    *("generatedtokens", "response_tokens", "output_length", "output_tokens", "output_len"),
    *("completion_tokens", "num_decode_tokens"),
)
_MILLISECONDS = {"hash_ids"}

_TABLE_ROW = re.compile(
    r"\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*-?\d+\s*\|\s*([A-Za-z_.]+)\s*\|\s*(\d+)\s*\|"
)
_TABLE_HEAD = re.compile(r"\|\s*Unpadded Tokens\s*\|")


@dataclass(frozen=True)
class RequestTrace:
    """A ``RequestTrace`` is a recorded stream of requests, with their arrivals and lengths.

    Arrivals are in nanoseconds, ascending from 0. Lengths are in tokens.
    """

    name: str
    arrival_ns: tuple[int, ...]
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]

    @property
    def tokens_per_s(self) -> float | None:
        """Return the output tokens that arrive per second, or None if all requests arrive
        at once.
        """
        span = self.arrival_ns[-1]
        return sum(self.output_tokens) / span * _NS_PER_S if span else None


@dataclass(frozen=True)
class StepLog:
    """A ``StepLog`` holds what vLLM's --cudagraph-metrics counted.

    Each step is its tokens before padding, its mode and how often it ran.
    """

    name: str
    steps: tuple[tuple[int, str, int], ...]

    def at(self, query_len: int, max_batch_size: int) -> Concurrency:
        """Return the steps as a workload of decode batches with ``query_len`` tokens a request.

        A step is left out if it ran in pieces, because it held a prefill. So is a step whose tokens
        are no whole number of requests up to ``max_batch_size``. Raise ``BadInputError`` if no step
        is left.
        """
        decode = Counter[int]()
        for tokens, mode, count in self.steps:
            requests, odd = divmod(tokens, query_len)
            if not odd and 0 < requests <= max_batch_size and "PIECEWISE" not in mode.upper():
                decode[requests] += count
        if not decode:
            raise BadInputError(
                f"{FLAG} {self.name}: no step of the log is a decode batch of {query_len} tokens a "
                "request. Give the --spec-tokens that it ran with"
            )
        return Concurrency.of(((n, float(count)) for n, count in decode.items()), self.name)


Workload = Concurrency | RequestTrace | StepLog


def read_workload(text: str) -> Workload:
    """Return the workload that ``--concurrency`` names: a distribution, or a file's contents.

    The file is a histogram, a log or a request trace. Raise ``BadInputError`` naming the flag or
    the file.
    """
    if re.fullmatch(r"(geometric|uniform|constant):.*", text, re.DOTALL):
        return Concurrency.parse(text)
    file = Path(text)
    if not file.is_file():
        return Concurrency.parse(text)
    if (found := _found(text, file)) is not None:
        return found
    return Concurrency.parse(text)


def _found(name: str, file: Path) -> Workload | None:
    """Return a file's log of steps or trace, or None if its first lines show another kind
    of file.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        head = "".join(line for _, line in zip(range(50), lines, strict=False))[:1_000_000]
    first = next((line for line in head.splitlines() if line.strip()), "")
    if _TABLE_HEAD.search(head) or "CUDAGraph Stats" in head:
        return _step_log(name, read_text(f"{FLAG} {name}", file, _MAX_BYTES))
    if first.lstrip().startswith("{") and len(head.strip().splitlines()) > 1:
        columns = _json_columns(first)
    else:
        columns = [_plain(cell) for cell in next(csv.reader([first.lstrip("\ufeff")]), [])]
    if _column(columns, _OUTPUTS) is None or _column(columns, _ARRIVALS) is None:
        return None
    return _trace(name, read_text(f"{FLAG} {name}", file, _MAX_BYTES), columns)


def _step_log(name: str, text: str) -> StepLog:
    steps = [(int(tokens), mode, int(count)) for tokens, _, mode, count in _TABLE_ROW.findall(text)]
    if not steps:
        raise BadInputError(f"{FLAG} {name}: holds no row of vLLM's --cudagraph-metrics")
    return StepLog(name, tuple(steps))


def _json_columns(line: str) -> list[str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return [_plain(key) for key in found] if isinstance(found, dict) else []


def _plain(cell: str) -> str:
    return cell.strip().lower().replace(" ", "_")


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _trace(name: str, text: str, columns: Sequence[str]) -> RequestTrace:
    arrival, output = _column(columns, _ARRIVALS), _column(columns, _OUTPUTS)
    prompt = _column(columns, _INPUTS)
    assert arrival and output
    scale = 1_000_000 if _MILLISECONDS & {*columns} else _NS_PER_S
    rows = []
    for number, row in _rows(name, text):
        label = f"{FLAG} {name}: request {number}"
        at = _time_ns(f"{label}: {arrival}", row.get(arrival, ""), scale)
        tokens = _tokens(f"{label}: {output}", row.get(output, ""), 0)
        read = _tokens(f"{label}: {prompt}", row.get(prompt, ""), 0) if prompt else 0
        # A request that failed has no output.
        if tokens:
            rows.append((at, read, tokens))
    if not rows:
        raise BadInputError(f"{FLAG} {name}: holds no request with output tokens")
    rows.sort(key=lambda each: each[0])
    start = rows[0][0]
    if rows[-1][0] - start > _LONGEST_NS:
        raise BadInputError(f"{FLAG} {name}: {arrival} spans more than ten years")
    return RequestTrace(
        name,
        tuple(at - start for at, _, _ in rows),
        tuple(read for _, read, _ in rows),
        tuple(tokens for _, _, tokens in rows),
    )


def _rows(name: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    lines = text.lstrip("\ufeff").splitlines()
    if lines[0].lstrip().startswith("{"):
        for number, line in enumerate(filter(str.strip, lines), start=1):
            try:
                found = json.loads(line)
                yield number, {_plain(key): str(value) for key, value in found.items()}
            except (ValueError, AttributeError, RecursionError) as error:
                raise BadInputError(
                    f"{FLAG} {name}: line {number} is no JSON object: {shown(line)}"
                ) from error
        return
    try:
        for number, row in enumerate(csv.DictReader(lines, strict=True), start=1):
            yield number, {_plain(key or ""): str(value) for key, value in row.items()}
    except csv.Error as error:
        raise BadInputError(f"{FLAG} {name}: not CSV: {error}") from error


def _time_ns(label: str, text: str, scale: int) -> int:
    """Return a time in nanoseconds from a number, or from a date with a time.

    A number counts in units of ``scale`` nanoseconds.
    """
    try:
        number = float(text)
    except ValueError:
        return _date_ns(label, text)
    if not isfinite(number) or abs(number) > 1e15:
        raise BadInputError(f"{label} {shown(text)}: must be a time")
    return round(number * scale)


def _date_ns(label: str, text: str) -> int:
    # Azure's traces have seven digits of a second, of which Python reads six.
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text.strip())
    try:
        at = datetime.fromisoformat(cut)
    except ValueError as error:
        raise BadInputError(f"{label} {shown(text)}: must be a time or a date") from error
    since = at.replace(tzinfo=None) - datetime(2000, 1, 1)
    return (since.days * 86_400 + since.seconds) * _NS_PER_S + since.microseconds * 1_000


def _tokens(label: str, text: str, least: int) -> int:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (least <= number <= _MAX_TOKENS and number.is_integer()):
        raise BadInputError(f"{label} {shown(text)}: must be a number of tokens")
    return int(number)
