"""Result files of engines' benchmarks, written here from each tool's documented keys.

The keys are those that vLLM 0.32, SGLang 0.5, AIPerf 0.13 and TensorRT-LLM 1.3 write. The numbers
are made up: latencies around a stated mean. ``results/endpoint`` has files that vLLM
wrote itself.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REQUESTS = 200
LENGTH = 21


def gaps_of(tpot_s: float, seed: int, count: int = REQUESTS) -> list[list[float]]:
    """Gaps between arrivals: a list a request, some of several tokens."""
    source = random.Random(seed)
    found = []
    for _ in range(count):
        own = tpot_s * source.lognormvariate(0, 0.05)
        found.append([own * (LENGTH - 1) / 10 * source.uniform(0.9, 1.1) for _ in range(10)])
    return found


def vllm_serve(
    tpot_s: float = 0.02,
    seed: int = 0,
    *,
    detailed: bool = True,
    rates: Sequence[float] = (0.8, 0.6, 0.4),
    drafts: int = 4000,
    **changes: Any,
) -> dict[str, Any]:
    """``vllm bench serve --save-result``, with --save-detailed or without."""
    gaps, source = gaps_of(tpot_s, seed), random.Random(seed + 1)
    ttfts = [0.1 * source.lognormvariate(0, 0.1) for _ in gaps]
    record: dict[str, Any] = {
        "date": "20261130-000000",
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": "m",
        "tokenizer_id": "m",
        "num_prompts": REQUESTS,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 8,
        "duration": 30.0,
        "completed": REQUESTS,
        "failed": 0,
        "total_input_tokens": REQUESTS * 64,
        "total_output_tokens": REQUESTS * LENGTH,
        "request_throughput": 6.7,
        "output_throughput": LENGTH * REQUESTS / 30.0,
        "median_ttft_ms": 100.0,
        "median_tpot_ms": tpot_s * 1e3,
        "median_itl_ms": tpot_s * 2e3,
    }
    if rates:
        record |= {
            "spec_decode_acceptance_rate": 100 * sum(rates) / len(rates),
            "spec_decode_acceptance_length": 1 + sum(rates),
            "spec_decode_num_drafts": drafts,
            "spec_decode_draft_tokens": drafts * len(rates),
            "spec_decode_accepted_tokens": round(drafts * sum(rates)),
            "spec_decode_per_position_acceptance_rates": list(rates),
        }
    if detailed:
        record |= {
            "input_lens": [64] * REQUESTS,
            "output_lens": [LENGTH] * REQUESTS,
            "ttfts": ttfts,
            "itls": gaps,
            "start_times": [float(at) for at in range(REQUESTS)],
            "generated_texts": [""] * REQUESTS,
            "errors": [""] * REQUESTS,
        }
    return record | changes


def vllm_latency(tpot_s: float = 0.02, seed: int = 0, **changes: Any) -> dict[str, Any]:
    source = random.Random(seed)
    times = [tpot_s * LENGTH * source.lognormvariate(0, 0.01) for _ in range(30)]
    record = {"avg_latency": sum(times) / 30, "latencies": times, "percentiles": {"50": times[0]}}
    return {"model_id": "m"} | record | changes


def vllm_throughput(tpot_s: float = 0.02, seed: int = 0, **changes: Any) -> dict[str, Any]:
    elapsed = 100 * tpot_s * random.Random(seed).lognormvariate(0, 0.005)
    return {
        "model_id": "m",
        "elapsed_time": elapsed,
        "num_requests": 100,
        "total_num_tokens": 8500,
        "requests_per_second": 100 / elapsed,
        "tokens_per_second": 8500 / elapsed,
    } | changes


def sglang_serving(
    tpot_s: float = 0.02, seed: int = 0, *, detailed: bool = True, **changes: Any
) -> dict[str, Any]:
    """``sglang.bench_serving``, with --output-details or without."""
    gaps, source = gaps_of(tpot_s, seed), random.Random(seed + 1)
    record: dict[str, Any] = {
        "tag": None,
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": 4.0,
        "max_concurrency": 8,
        "sharegpt_output_len": None,
        "random_input_len": 64,
        "random_output_len": LENGTH,
        "random_range_ratio": 1.0,
        "duration": 30.0,
        "completed": REQUESTS,
        "total_input_tokens": REQUESTS * 64,
        "total_output_tokens": REQUESTS * LENGTH,
        "output_throughput": 140.0,
        "median_e2e_latency_ms": 500.0,
        "median_ttft_ms": 100.0,
        "median_tpot_ms": tpot_s * 1e3,
        "median_itl_ms": tpot_s * 2e3,
        "concurrency": 7.5,
        "accept_length": 2.4,
    }
    if detailed:
        record |= {
            "input_lens": [64] * REQUESTS,
            "output_lens": [LENGTH] * REQUESTS,
            "ttfts": [0.1 * source.lognormvariate(0, 0.1) for _ in gaps],
            "itls": gaps,
            "generated_texts": [""] * REQUESTS,
            "errors": [""] * REQUESTS,
        }
    return record | changes


def sglang_one_batch(tpot_s: float = 0.02, seed: int = 0, **changes: Any) -> dict[str, Any]:
    step = tpot_s * random.Random(seed).lognormvariate(0, 0.003)
    return {
        "run_name": "default",
        "batch_size": 8,
        "input_len": 64,
        "output_len": LENGTH,
        "prefill_latency": 0.05,
        "prefill_throughput": 8 * 64 / 0.05,
        "median_decode_latency": step,
        "median_decode_throughput": 8 / step,
        "total_latency": 0.05 + step * LENGTH,
        "overall_throughput": 8 * (64 + LENGTH) / (0.05 + step * LENGTH),
    } | changes


def aiperf_records(tpot_s: float = 0.02, seed: int = 0) -> list[dict[str, Any]]:
    """``profile_export.jsonl``, a record a line; the first one is of the warm-up."""
    source = random.Random(seed)
    found: list[dict[str, Any]] = []
    for index, gaps in enumerate(gaps_of(tpot_s, seed)):
        tpot_ms = 1e3 * sum(gaps) / (LENGTH - 1)
        ttft_ms = 100 * source.lognormvariate(0, 0.1)
        values = {
            "time_to_first_token": (ttft_ms, "ms"),
            "inter_token_latency": (tpot_ms, "ms"),
            "request_latency": (ttft_ms + tpot_ms * (LENGTH - 1), "ms"),
            "output_sequence_length": (LENGTH, "tokens"),
        }
        found.append(
            {
                "metadata": {
                    "request_start_ns": index * 1_000_000,
                    "request_end_ns": index * 1_000_000 + 1,
                    "benchmark_phase": "profiling" if index else "warmup",
                    "was_cancelled": False,
                },
                "metrics": {name: {"value": v, "unit": unit} for name, (v, unit) in values.items()},
                "error": None,
            }
        )
    return found


def aiperf_summary(tpot_s: float = 0.02, seed: int = 0) -> dict[str, Any]:
    """``profile_export_aiperf.json``."""

    def spread(value: float, unit: str) -> dict[str, Any]:
        return {"unit": unit, "avg": value, "p50": value, "p99": value * 1.2}

    return {
        "input_config": {"endpoint": {"model_names": ["m"], "streaming": True}},
        "request_count": spread(REQUESTS, "requests"),
        "time_to_first_token": spread(100.0, "ms"),
        "request_latency": spread(100 + 1e3 * tpot_s * (LENGTH - 1), "ms"),
        "inter_token_latency": spread(1e3 * tpot_s, "ms"),
        "output_token_throughput": spread(140.0, "tokens/sec"),
    }


def trtllm_report(tpot_s: float = 0.02, seed: int = 0) -> dict[str, Any]:
    """``trtllm-bench --report_json``."""

    def spread(value: float) -> dict[str, float]:
        return {"p50": value, "p99": value, "minimum": value, "maximum": value, "average": value}

    return {
        "engine": {"model": "m", "version": "1.3", "backend": "Pytorch"},
        "world_info": {"tp_size": 1, "max_batch_size": 8},
        "request_info": {"num_requests": REQUESTS, "avg_num_concurrent_requests": 7.5},
        "performance": {
            "system_output_throughput_tok_s": 140.0,
            "request_latency_percentiles_ms": spread(500.0),
        },
        "streaming_metrics": {
            "ttft_percentiles": spread(100.0),
            "tpot_percentiles": spread(tpot_s * 1e3),
        },
        "decoding_stats": {"mode": "MTP", "acceptance_length_percentiles": spread(2.4)},
    }


def trtllm_requests(tpot_s: float = 0.02, seed: int = 0) -> list[dict[str, Any]]:
    """``trtllm-bench --request_json``: nanoseconds."""
    source = random.Random(seed)
    found = []
    for index, gaps in enumerate(gaps_of(tpot_s, seed)):
        start, ttft = index * 10**8, round(1e8 * source.lognormvariate(0, 0.1))
        found.append(
            {
                "id": index,
                "num_input_tokens": 64,
                "error_tokens": 0,
                "start_timestamp": start,
                "first_token_timestamp": start + ttft,
                "end_timestamp": start + ttft + round(1e9 * sum(gaps)),
                "decode_iteration": source.choice((7, 8, 9)),
                "output": "",
                "output_tokens": LENGTH,
            }
        )
    return found


SAMPLED: Mapping[str, Callable[..., Any]] = {
    "vllm bench serve": vllm_serve,
    "vllm bench latency": vllm_latency,
    "sglang.bench_serving": sglang_serving,
    "AIPerf": aiperf_records,
    "trtllm-bench": trtllm_requests,
}
"""Files with a sample a request."""

SUMMARIES: Mapping[str, Callable[..., Any]] = {
    "vllm bench serve": lambda *a: vllm_serve(*a, detailed=False),
    "vllm bench throughput": vllm_throughput,
    "sglang.bench_serving": lambda *a: sglang_serving(*a, detailed=False),
    "sglang.bench_one_batch": sglang_one_batch,
    "AIPerf": aiperf_summary,
    "trtllm-bench": trtllm_report,
}
"""Files with figures of the whole run alone."""


def write(path: Path, content: Any) -> Path:
    """A file as the tools write it: one object, a list of them, or one a line."""
    lines = isinstance(content, list) and path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
    path.write_text(text + "\n", encoding="utf-8")
    return path
