"""Read the result files of engines' own benchmarks.

The tools are known by their keys: ``vllm bench serve``, ``latency`` and ``throughput`` (0.32),
``sglang.bench_serving`` and ``bench_one_batch`` (0.5), AIPerf (0.13) and ``trtllm-bench`` (1.3). A
file may hold several results, one a line. Results of the same settings are runs of one kind.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cgbench.errors import BadInputError, RunDirectoryError, first_line
from cgbench.gate import request_benches, serving_benches
from cgbench.gate.bench_run import BenchRun
from cgbench.inputs import JsonObject, parse_json, read_text

MAX_BYTES = 512 << 20
"""Texts of some 100,000 requests."""


@dataclass(frozen=True, slots=True)
class BenchFile:
    """A ``BenchFile`` holds what a tool wrote: its runs, in the order written."""

    path: Path
    tool: str
    runs: tuple[BenchRun, ...]


def is_bench_file(path: Path) -> bool:
    """Return whether ``path`` is a file. A run of cgbench is a folder."""
    return path.is_file()


def read_bench_file(name: str, path: Path) -> BenchFile:
    """Return the results in ``path``. ``name`` is BASE, NEW or FILE.

    Raise ``RunDirectoryError``, naming the file, if it is no result of a known tool.
    """
    label = f"{name} {path}"
    text = read_text(label, path, MAX_BYTES, RunDirectoryError)
    records = _records(label, text)
    tool = next((each for each in _TOOLS if all(each.holds(r) for r in records)), None)
    if tool is None:
        names = "vllm bench, sglang.bench_serving or bench_one_batch, AIPerf or trtllm-bench"
        raise RunDirectoryError(f"{label}: is no result of {names}")
    try:
        runs = tool.read(records)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise RunDirectoryError(f"{label}: is damaged: {reason}") from error
    return BenchFile(path, tool.name, tuple(runs))


def _records(label: str, text: str) -> list[JsonObject]:
    """Return the objects of a JSON file, or of one with an object a line."""
    try:
        whole = parse_json(label, text, BadInputError)
    except BadInputError:
        whole = [
            parse_json(f"{label} line {number}", line, RunDirectoryError)
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    found = whole if isinstance(whole, list) else [whole]
    if not found or not all(isinstance(each, dict) for each in found):
        raise RunDirectoryError(f"{label}: must hold JSON objects")
    return found


@dataclass(frozen=True, slots=True)
class _Tool:
    """A tool is known by its records' keys, and has a reader for them."""

    name: str
    holds: "Test"
    read: Callable[[list[JsonObject]], list[BenchRun]]


Test: TypeAlias = Callable[[JsonObject], bool]


def _has(*keys: str) -> Test:
    """Return a test for records that hold all of ``keys``."""
    return lambda record: all(key in record for key in keys)


_TOOLS = (
    _Tool(
        "vllm bench serve",
        _has("model_id", "tokenizer_id", "completed"),
        serving_benches.vllm_serve,
    ),
    _Tool("vllm bench latency", _has("latencies", "avg_latency"), serving_benches.vllm_latency),
    _Tool(
        "vllm bench throughput",
        _has("elapsed_time", "tokens_per_second"),
        serving_benches.vllm_throughput,
    ),
    _Tool(
        "sglang.bench_serving",
        _has("completed", "median_ttft_ms", "backend"),
        serving_benches.sglang_serving,
    ),
    _Tool(
        "sglang.bench_one_batch",
        _has("batch_size", "input_len", "output_len", "prefill_latency"),
        serving_benches.sglang_one_batch,
    ),
    _Tool("AIPerf", _has("metadata", "metrics"), request_benches.aiperf_records),
    _Tool("trtllm-bench", _has("performance", "request_info"), request_benches.trtllm_report),
    _Tool(
        "trtllm-bench",
        _has("start_timestamp", "end_timestamp", "output_tokens"),
        request_benches.trtllm_requests,
    ),
    _Tool(
        "AIPerf",
        lambda record: any(
            isinstance(record.get("records", record), dict)
            and isinstance(record.get("records", record).get(key), dict)
            for key in ("request_latency", "time_to_first_token")
        ),
        request_benches.aiperf_summary,
    ),
)
