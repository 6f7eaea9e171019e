"""Read TensorRT-LLM's launch line: ``trtllm-serve MODEL --config FILE`` (``llmapi/llm_args.py``).

The file's values replace the words'.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject
from cgbench.planning.draft_schedule import DraftSchedule, from_thresholds
from cgbench.planning.launch_lines.config_file import read_config
from cgbench.planning.launch_lines.harmless_options import TENSORRT_LLM
from cgbench.planning.launch_lines.option_reader import (
    Options,
    Spec,
    number_list,
    read,
    whole,
)
from cgbench.planning.launch_lines.reading import Given, Reading
from cgbench.planning.plan_request import (
    MAX_PLANNED_SPEC_TOKENS,
    CaptureMode,
    Drafting,
    PlanRequest,
)

POLICY = "tensorrt-llm-1.3"

_BACKEND = "pytorch"

GRAPHS = "cuda_graph_config"
SPECULATIVE = "speculative_config"

SPECS = (
    Spec(("--max_batch_size",)),
    Spec(("--max_num_tokens",)),
    Spec(("--config", "--extra_llm_api_options")),
    Spec(("--backend",)),
)

UNPLANNED = {"--pp_size": "each stage has graphs of its own"}

ENVIRONMENT: dict[str, tuple[str, str]] = {}

_KEYS = {
    *("max_batch_size", "max_num_tokens", GRAPHS, SPECULATIVE),
    *("kv_cache_config", "tensor_parallel_size", "moe_expert_parallel_size", "dtype", "backend"),
    *("moe_config", "print_iter_log", "stream_interval", "enable_chunked_prefill", "max_seq_len"),
    *("enable_iter_perf_stats", "attn_backend", "scheduler_config", "quant_config", "model"),
    *("trust_remote_code", "disable_overlap_scheduler", "num_postprocess_workers", "max_input_len"),
    *("hostname", "port", "tokenizer", "load_format", "cache_transceiver_config", "log_level"),
    *("enable_autotuner", "allreduce_strategy", "enable_block_reuse", "max_beam_width"),
}

_UNPLANNED_KEYS = {
    "enable_attention_dp": "a rank pads to the largest batch of all ranks",
    "pipeline_parallel_size": "each stage has graphs of its own",
    "torch_compile_config": "mixed batches may have graphs in pieces",
}

_DRAFT_KEYS = {
    *("decoding_type", "max_draft_len", "num_nextn_predict_layers", "draft_len_schedule"),
    *("max_concurrency", "speculative_model", "speculative_model_dir", "load_format"),
    *("use_relaxed_acceptance_for_thinking", "relaxed_topk", "relaxed_delta"),
    *("begin_thinking_phase_token", "end_thinking_phase_token", "allow_advanced_sampling"),
    *("eagle3_layers_to_capture", "num_eagle_layers", "max_ngram_size", "is_keep_all"),
    *("max_matching_ngram_size", "is_use_oldest", "is_public_pool", "max_window_size"),
    *("max_verification_set_size", "eagle3_one_model", "mtp_eagle_one_model"),
}

_MTP = {"MTP", "EAGLE", "EAGLE3"}
_WITHOUT_MODEL = {"NGRAM", "LOOKAHEAD", "SA"}
_LENGTHS = ("max_draft_len", "num_nextn_predict_layers")


def read_tensorrt_llm(words: list[str]) -> Reading:
    """Read what the line and its file ask of the planner.

    Raise ``BadInputError`` naming the option.
    """
    options = read(words, SPECS, TENSORRT_LLM)
    name = options.text("--config")
    found = read_config("--config", Path(name)) if name else {}
    graphs, speculative = _objects(found)
    given = replace(
        _of_graphs(graphs or {}),
        max_batch_size=_number(options, found, "max_batch_size"),
        max_num_batched_tokens=_number(options, found, "max_num_tokens"),
    )
    base = PlanRequest(
        _draft_len(speculative),
        1,
        POLICY,
        capture_mode=CaptureMode.NONE if graphs is None else CaptureMode.FULL,
        drafting=_drafting(speculative),
    )
    reading = Reading("TensorRT-LLM", base, given, [*_said(found)])
    reading.add_unknown(options.unknown, UNPLANNED)
    backend = found.get("backend") or options.text("--backend") or _BACKEND
    if backend != _BACKEND:
        reading.warnings.append(f"--backend {backend}: not planned (the plan is {_BACKEND}'s)")
    schedule = (speculative or {}).get("draft_len_schedule")
    if schedule is not None:
        reading.schedule = _schedule(speculative or {}, schedule)
    return reading


def _schedule(speculative: JsonObject, value: object) -> Callable[[int], DraftSchedule]:
    label = f"{SPECULATIVE}.draft_len_schedule"
    if speculative.get("max_concurrency") is not None:
        raise BadInputError(f"{label} beside max_concurrency: the engine refuses both. Give one")
    most = speculative.get("max_draft_len")
    length = None if most is None else whole(f"{SPECULATIVE}.max_draft_len", most)
    return lambda size: from_thresholds(label, value, size, length)


def _objects(found: JsonObject) -> tuple[JsonObject | None, JsonObject | None]:
    """Return the file's part on graphs and its part on drafts.

    Null for graphs switches them off, and gives None.
    """
    graphs, speculative = found.get(GRAPHS, {}), found.get(SPECULATIVE)
    for name, value in ((GRAPHS, graphs), (SPECULATIVE, speculative)):
        if value is not None and not isinstance(value, dict):
            raise BadInputError(f"{name}: must hold names and values")
    return graphs, speculative


def _number(options: Options, found: JsonObject, name: str) -> int | None:
    value = found.get(name)
    return options.whole(f"--{name}") if value is None else whole(name, value)


def _of_graphs(graphs: JsonObject) -> Given:
    """Return the fields that ``cuda_graph_config`` gives. A maximum of 0 counts as none."""
    for key in graphs.keys() - {"batch_sizes", "max_batch_size", "enable_padding", "mode"}:
        raise BadInputError(f"{GRAPHS}.{key}: the engine knows no such key")
    padding = graphs.get("enable_padding")
    if padding is not None and not isinstance(padding, bool):
        raise BadInputError(f"{GRAPHS}.enable_padding {padding}: must be true or false")
    sizes, most = graphs.get("batch_sizes"), graphs.get("max_batch_size")
    return Given(
        graph_sizes=None if sizes is None else number_list(f"{GRAPHS}.batch_sizes", sizes),
        graph_maximum=whole(f"{GRAPHS}.max_batch_size", most) if most else None,
        pad=padding,
    )


def _draft_len(speculative: JsonObject | None) -> int:
    if speculative is None:
        return 0
    lengths = [speculative[key] for key in _LENGTHS if speculative.get(key) is not None]
    if not lengths:
        raise BadInputError(f"{SPECULATIVE}: give {' or '.join(_LENGTHS)}")
    return whole(f"{SPECULATIVE}.{_LENGTHS[0]}", lengths[0], most=MAX_PLANNED_SPEC_TOKENS)


def _drafting(speculative: JsonObject | None) -> Drafting:
    kind = str((speculative or {}).get("decoding_type", "MTP")).upper()
    return Drafting.WITHOUT_MODEL if kind in _WITHOUT_MODEL else Drafting.CHAIN


def _said(found: JsonObject) -> Iterator[str]:
    for key, value in found.items():
        if key in _UNPLANNED_KEYS and value not in (None, False, 1):
            yield f"{key}: not planned ({_UNPLANNED_KEYS[key]})"
        elif key not in _KEYS and key not in _UNPLANNED_KEYS:
            yield f"{key}: not understood"
    speculative = found.get(SPECULATIVE) or {}
    for key in speculative.keys() - _DRAFT_KEYS:
        yield f"{SPECULATIVE}.{key}: not understood"
    for key in ("eagle3_one_model", "mtp_eagle_one_model"):
        if speculative.get(key) is False:
            yield f"{SPECULATIVE}.{key} false: not planned (drafts have graphs of their own)"
    kind = str(speculative.get("decoding_type", "MTP")).upper()
    if speculative and kind not in _MTP | _WITHOUT_MODEL:
        yield f"{SPECULATIVE}.decoding_type {kind}: planned as one graph for target and drafts"
    if limit := speculative.get("max_concurrency"):
        yield f"{SPECULATIVE}.max_concurrency {limit}: above it no draft is made, not planned"
