"""Read what AIPerf and trtllm-bench write."""

from typing import Any

from cgbench.gate.bench_run import BenchRun, figures_of, number_of, text_of, words_of
from cgbench.inputs import JsonObject

_AIPERF = {
    "ttft": "time_to_first_token",
    "latency": "request_latency",
    "tpot": "inter_token_latency",
    "throughput": "output_token_throughput",
}
"""AIPerf's inter-token latency is (latency - TTFT) / (tokens - 1): TPOT, as the glossary has it."""
_TO_SECONDS = {"ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def aiperf_records(records: list[JsonObject]) -> list[BenchRun]:
    """Read AIPerf's records of requests. Those of the warm-up do not count."""
    profiled = [
        record
        for record in records
        if record.get("metadata", {}).get("benchmark_phase", "profiling") == "profiling"
    ]
    good = [
        record
        for record in profiled
        if not record.get("error") and not record["metadata"].get("was_cancelled")
    ]
    good.sort(key=lambda record: record["metadata"].get("request_start_ns", 0))
    samples = {
        name: tuple(
            value
            for record in good
            if (value := _valued(record["metrics"].get(key), "value")) is not None
        )
        for name, key in _AIPERF.items()
        if name != "throughput"
    }
    settings = {"requests": str(len(profiled))}
    failed = len(profiled) - len(good)
    held = {name: values for name, values in samples.items() if values}
    return [BenchRun("AIPerf", None, settings, held, failed=failed)]


def aiperf_summary(records: list[JsonObject]) -> list[BenchRun]:
    """Read AIPerf's summary of a run, which has no samples."""
    runs = []
    for record in records:
        within = record.get("records", record)
        values = {
            name: _valued(within.get(key), "avg" if name == "throughput" else "p50")
            for name, key in _AIPERF.items()
        }
        held = {name: value for name, value in values.items() if value is not None}
        names = record.get("input_config", {}).get("endpoint", {}).get("model_names")
        model = names[0] if isinstance(names, list) and names else None
        hint = "Give its profile_export.jsonl, which has a record a request"
        runs.append(BenchRun("AIPerf", model, single=held, hint=hint))
    return runs


def _valued(found: Any, key: str) -> float | None:
    """Return a metric of AIPerf in seconds, or in its own unit if that is no time."""
    value = number_of(found.get(key)) if isinstance(found, dict) else None
    return None if value is None else value * _TO_SECONDS.get(str(found.get("unit", "ms")), 1.0)


def trtllm_report(records: list[JsonObject]) -> list[BenchRun]:
    """Read the report of ``trtllm-bench``, which has no samples."""
    runs = []
    for record in records:
        performance = record["performance"]
        single = figures_of(performance, {"throughput": ("system_output_throughput_tok_s", 1.0)})
        single |= _percentile("latency", performance.get("request_latency_percentiles_ms"), 1e-3)
        streaming = record.get("streaming_metrics", {})
        single |= _percentile("ttft", streaming.get("ttft_percentiles"), 1e-3)
        single |= _percentile("tpot", streaming.get("tpot_percentiles"), 1e-3)
        decoding = record.get("decoding_stats") or {}
        single |= _percentile("acceptance", decoding.get("acceptance_length_percentiles"), 1.0)
        settings = words_of(record.get("request_info", {}), {"num_requests": "requests"})
        hint = "Give the file of --request_json, which has a record a request"
        model = text_of(record.get("engine", {}).get("model"))
        runs.append(BenchRun("trtllm-bench", model, settings, single=single, hint=hint))
    return runs


def _percentile(name: str, found: Any, unit: float) -> dict[str, float]:
    value = number_of(found.get("p50")) if isinstance(found, dict) else None
    return {} if value is None else {name: value * unit}


def trtllm_requests(records: list[JsonObject]) -> list[BenchRun]:
    """Read the requests of ``trtllm-bench``, whose times are nanoseconds.

    The tokens took ``decode_iteration`` + 1 iterations.
    """
    ordered = sorted(records, key=lambda record: record["start_timestamp"])
    good = [record for record in ordered if not record.get("error_tokens")]
    streamed = [record for record in good if record.get("first_token_timestamp", -1) > 0]
    found = {
        "latency": [r["end_timestamp"] - r["start_timestamp"] for r in good],
        "ttft": [r["first_token_timestamp"] - r["start_timestamp"] for r in streamed],
        "tpot": [
            (r["end_timestamp"] - r["first_token_timestamp"]) / (r["output_tokens"] - 1)
            for r in streamed
            if r["output_tokens"] > 1
        ],
    }
    samples = {name: tuple(v * 1e-9 for v in values) for name, values in found.items() if values}
    drafted = [r for r in good if 0 < r.get("decode_iteration", 0) + 1 < r["output_tokens"]]
    if drafted:
        lengths = (r["output_tokens"] / (r["decode_iteration"] + 1) for r in good)
        samples["acceptance"] = tuple(lengths)
    failed = len(ordered) - len(good)
    settings = {"requests": str(len(ordered))}
    return [BenchRun("trtllm-bench", None, settings, samples, failed=failed)]
