"""Read FastDeploy's launch line: ``python -m fastdeploy.entrypoints.openai.api_server``.

Its options are in ``fastdeploy/engine/args_utils.py``.
"""

from collections.abc import Iterator

from cgbench.inputs import JsonObject, shown
from cgbench.planning.launch_lines.harmless_options import FASTDEPLOY
from cgbench.planning.launch_lines.option_reader import (
    Kind,
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
from cgbench.planning.policies.fastdeploy import PREFILL_TOKENS

POLICY = "fastdeploy-2.5"

GRAPHS = "--graph-optimization-config"
SPECULATIVE = "--speculative-config"
SIZES = "cudagraph_capture_sizes"

SPECS = (
    Spec((GRAPHS,)),
    Spec((SPECULATIVE,)),
    Spec(("--max-num-seqs",)),
    Spec(("--tensor-parallel-size", "-tp")),
    Spec(("--use-cudagraph",), Kind.FLAG),
)

UNPLANNED = {
    "--data-parallel-size": "each rank has a batch of its own",
    "--use-sequence-parallel-moe": "sizes that tp does not divide are dropped",
}

ENVIRONMENT: dict[str, tuple[str, str]] = {}

_GRAPH_KEYS = {
    *("use_cudagraph", "cudagraph_capture_sizes", "graph_opt_level", "full_cuda_graph"),
    *("cudagraph_num_of_warmups", "use_unique_memory_pool", "sot_warmup_sizes"),
    *("cudagraph_only_prefill", "max_capture_shape_prefill", "cudagraph_capture_sizes_prefill"),
    *("cudagraph_splitting_ops", "cudagraph_copy_inputs", "use_memory_pool"),
}


_DRAFT_KEYS = {
    *("method", "mtp_strategy", "num_speculative_tokens", "num_model_steps", "model"),
    *("quantization", "max_candidate_len", "verify_window", "max_ngram_size", "min_ngram_size"),
    *("benchmark_mode", "num_extra_cache_layer", "num_gpu_block_expand_ratio", "model_type"),
}


def read_fastdeploy(words: list[str]) -> Reading:
    """Read what the line asks of the planner. Raise ``BadInputError`` naming the option."""
    named = [_dashed(word) for word in words]
    options = read(named, SPECS, FASTDEPLOY)
    graphs, speculative = options.json(GRAPHS), options.json(SPECULATIVE)
    sizes = graphs.get(SIZES)
    given = Given(
        max_batch_size=options.whole("--max-num-seqs"),
        graph_sizes=None if sizes is None else number_list(f"{GRAPHS} {SIZES}", sizes),
    )
    is_off = graphs.get("use_cudagraph") is False or graphs.get("cudagraph_only_prefill") is True
    base = PlanRequest(
        _spec_tokens(speculative),
        1,
        POLICY,
        capture_mode=CaptureMode.NONE if is_off else CaptureMode.FULL,
        drafting=_drafting(speculative),
    )
    reading = Reading("FastDeploy", base, given, [*_said(graphs, speculative)])
    reading.add_unknown(options.unknown, UNPLANNED)
    return reading


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _spec_tokens(speculative: JsonObject) -> int:
    if not speculative or speculative.get("method") is None:
        return 0
    tokens = speculative.get("num_speculative_tokens", 1)
    return whole(f"{SPECULATIVE} num_speculative_tokens", tokens, most=MAX_PLANNED_SPEC_TOKENS)


_WITHOUT_MODEL = {"ngram", "ngram_match", "naive", "suffix"}
_HEADS = {"mtp", "hybrid_mtp_ngram"}


def _drafting(speculative: JsonObject) -> Drafting:
    is_looked_up = str(speculative.get("method", "")).lower() in _WITHOUT_MODEL
    return Drafting.WITHOUT_MODEL if is_looked_up else Drafting.CHAIN


def _said(graphs: JsonObject, speculative: JsonObject) -> Iterator[str]:
    for key in graphs.keys() - _GRAPH_KEYS:
        yield f"{GRAPHS} {key}: not understood"
    for key in speculative.keys() - _DRAFT_KEYS:
        yield f"{SPECULATIVE} {key}: not understood"
    method = speculative.get("method")
    if method is not None and str(method).lower() not in _HEADS | _WITHOUT_MODEL:
        yield f"{SPECULATIVE} method {shown(str(method))}: not understood, planned as mtp"
    if graphs.get("full_cuda_graph") is False:
        prefill = graphs.get("cudagraph_capture_sizes_prefill") or [*PREFILL_TOKENS]
        yield f"{GRAPHS} full_cuda_graph false: prefills have graphs too, at {prefill} tokens"
    tokens, steps = (
        speculative.get(key, 1) for key in ("num_speculative_tokens", "num_model_steps")
    )
    if speculative.get("method") == "mtp" and isinstance(tokens, int) and steps != tokens:
        yield (
            f"{SPECULATIVE} num_model_steps {steps}: the draft model makes {steps} of {tokens} "
            "drafts"
        )
