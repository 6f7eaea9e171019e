"""Read what vLLM's and SGLang's own benchmarks write."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from cgbench.gate.bench_run import BenchRun, figures_of, number_of, text_of, words_of
from cgbench.inputs import JsonObject

_SERVE_SINGLE = {
    "ttft": ("median_ttft_ms", 1e-3),
    "tpot": ("median_tpot_ms", 1e-3),
    "itl": ("median_itl_ms", 1e-3),
    "throughput": ("output_throughput", 1.0),
}


def _streamed(record: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return the samples of requests that were streamed.

    Failed ones have no time and are left out.
    """
    if not isinstance(record.get("ttfts"), list) or not isinstance(record.get("itls"), list):
        return {}
    starts = record.get("start_times")
    rows = [*zip(record["ttfts"], record["itls"], record["output_lens"], strict=True)]
    order = [*range(len(rows))]
    if isinstance(starts, list) and len(starts) == len(rows):
        order.sort(key=lambda index: starts[index])
    errors = record.get("errors") or [""] * len(rows)
    good = [rows[i] for i in order if rows[i][2] and rows[i][0] > 0 and not errors[i]]
    found = {
        "ttft": [ttft for ttft, _, _ in good],
        "latency": [ttft + sum(gaps) for ttft, gaps, _ in good],
        "tpot": [sum(gaps) / (length - 1) for _, gaps, length in good if length > 1],
        "itl": [median(gaps) for _, gaps, _ in good if gaps],
    }
    return {name: tuple(map(float, values)) for name, values in found.items() if values}


def _failed(record: Mapping[str, Any]) -> int | None:
    if isinstance(record.get("failed"), int):
        return int(record["failed"])
    if isinstance(record.get("errors"), list):
        return sum(bool(error) for error in record["errors"])
    return None


def vllm_serve(records: list[JsonObject]) -> list[BenchRun]:
    """Read results of ``vllm bench serve``."""
    return [
        BenchRun(
            "vllm bench serve",
            str(record["model_id"]),
            words_of(
                record,
                {
                    "num_prompts": "requests",
                    "request_rate": "rate",
                    "max_concurrency": "concurrency",
                    "backend": "backend",
                },
            ),
            _streamed(record),
            figures_of(
                record,
                _SERVE_SINGLE
                | {
                    "latency": ("median_e2el_ms", 1e-3),
                    "acceptance": ("spec_decode_acceptance_length", 1.0),
                },
            ),
            _vllm_counts(record),
            _failed(record),
            number_of(record.get("total_input_tokens")),
            "Run with --save-detailed",
        )
        for record in records
    ]


def _vllm_counts(record: Mapping[str, Any]) -> tuple[tuple[float, float], ...]:
    drafts = number_of(record.get("spec_decode_num_drafts"))
    rates = record.get("spec_decode_per_position_acceptance_rates")
    if not drafts or not isinstance(rates, list):
        return ()
    return tuple((round(float(rate) * drafts), drafts) for rate in rates)


def vllm_latency(records: list[JsonObject]) -> list[BenchRun]:
    """Read results of ``vllm bench latency``, whose samples are iterations."""
    return [
        BenchRun(
            "vllm bench latency",
            text_of(record.get("model_id")),
            samples={"latency": tuple(map(float, record["latencies"]))},
        )
        for record in records
    ]


def vllm_throughput(records: list[JsonObject]) -> list[BenchRun]:
    """Read results of ``vllm bench throughput``, which have no samples."""
    return [
        BenchRun(
            "vllm bench throughput",
            text_of(record.get("model_id")),
            words_of(record, {"num_requests": "requests", "total_num_tokens": "tokens"}),
            single=figures_of(record, {"throughput": ("tokens_per_second", 1.0)}),
            hint="Repeat the benchmark, and put the results into one file, one a line",
        )
        for record in records
    ]


def sglang_serving(records: list[JsonObject]) -> list[BenchRun]:
    """Read results of ``sglang.bench_serving``."""
    keys = {
        "dataset_name": "dataset",
        "request_rate": "rate",
        "max_concurrency": "concurrency",
        "random_input_len": "input",
        "random_output_len": "output",
        "backend": "backend",
    }
    single = {
        "latency": ("median_e2e_latency_ms", 1e-3),
        "acceptance": ("accept_length", 1.0),
    }
    return [
        BenchRun(
            "sglang.bench_serving",
            text_of(record.get("model") or record.get("model_id")),
            words_of(record, keys),
            _streamed(record),
            figures_of(record, _SERVE_SINGLE | single),
            failed=_failed(record),
            input_tokens=number_of(record.get("total_input_tokens")),
            hint="Run with --output-details",
        )
        for record in records
    ]


def sglang_one_batch(records: list[JsonObject]) -> list[BenchRun]:
    """Read results of ``sglang.bench_one_batch``, which have no samples."""
    keys = {"batch_size": "batch", "input_len": "input", "output_len": "output"}
    single = {
        "ttft": ("prefill_latency", 1.0),
        "tpot": ("median_decode_latency", 1.0),
        "latency": ("total_latency", 1.0),
        "throughput": ("overall_throughput", 1.0),
    }
    return [
        BenchRun(
            "sglang.bench_one_batch",
            None,
            words_of(record, keys),
            single=figures_of(record, single),
            hint="Repeat the benchmark into the same --result-filename",
        )
        for record in records
    ]
