"""Read vLLM's launch line: ``vllm serve``, or the API server's module.

The parser is ``vllm/utils/argparse_utils.py``. Underscores count as dashes. Dotted forms
(``-cc.cudagraph_mode=NONE``) are gathered into one object. It comes after the words, and so
replaces an object that was given whole.
"""

from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject
from cgbench.planning.engine_defaults import VLLM_RELEASE
from cgbench.planning.launch_lines.harmless_options import VLLM
from cgbench.planning.launch_lines.option_reader import (
    Kind,
    Options,
    Spec,
    number_list,
    read,
    whole,
)
from cgbench.planning.launch_lines.reading import Given, Reading
from cgbench.planning.launch_lines.vllm_drafts import (
    SPECULATIVE,
    drafting,
    said_of_drafts,
    scheduled,
    spec_tokens,
)
from cgbench.planning.launch_lines.vllm_graph_mode import COMPILATION, graph_mode
from cgbench.planning.launch_lines.vllm_words import human_readable, normal
from cgbench.planning.plan_request import (
    PlanRequest,
)

POLICY = VLLM_RELEASE

SPECS = (
    Spec((COMPILATION, "-cc")),
    Spec((SPECULATIVE, "-sc")),
    Spec(("--max-num-seqs",)),
    Spec(("--max-num-batched-tokens",)),
    Spec(("--max-model-len",)),
    Spec(("--cudagraph-capture-sizes",), Kind.LIST),
    Spec(("--max-cudagraph-capture-size",)),
    Spec(("--spec-tokens",)),
    Spec(("--spec-method",)),
    Spec(("--tensor-parallel-size", "-tp")),
    Spec(("--data-parallel-size", "-dp")),
    Spec(("--performance-mode",)),
    Spec(("--optimization-level", "-O")),
    Spec(("--enforce-eager",), Kind.FLAG, has_negative=True),
)

# These options change the graphs and have no rule here. Each has a line on what it changes.
UNPLANNED = {
    "--enable-lora": "each graph is captured with LoRA and without",
    "--enable-dbo": "batches are split in two",
    "--pipeline-parallel-size": "each stage has graphs of its own",
    "-pp": "each stage has graphs of its own",
    "--no-enable-chunked-prefill": "the token budget is at least the model's length",
    "--disable-chunked-prefill": "the token budget is at least the model's length",
    "--attention-backend": "one without graphs of k + 1 tokens a request runs them in pieces",
    "--attention-config": "a backend without graphs of k + 1 tokens runs them in pieces",
    "--all2all-backend": "some backends have no graphs",
    "--kv-transfer-config": "a connector that works layer by layer leaves pieces alone",
    "--prefill-context-parallel-size": "graphs are those of one rank's part of a batch",
    "--decode-context-parallel-size": "graphs are those of one rank's part of a batch",
    "--max-num-active-seqs": "fewer requests than max_num_seqs decode together",
    "--additional-config": "plug-ins read it",
}

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": ("1", "runner V1 drafts without full graphs"),
    "VLLM_USE_BREAKABLE_CUDAGRAPH": ("0", "mixed batches are captured in another way"),
    "TORCH_COMPILE_DISABLE": ("0", "without compilation no batch runs in pieces"),
}

DATA_PARALLEL = "--data-parallel-size"

# Keys of --compilation-config that change no size.
_OTHER_KEYS = {
    *("cache_dir", "backend", "custom_ops", "splitting_ops", "compile_sizes", "debug_dump_path"),
    *("inductor_compile_config", "cudagraph_num_of_warmups", "cudagraph_copy_inputs"),
    *("use_inductor", "compile_mm_encoder", "mode", "compile_cache_save_format"),
    *("ir_enable_torch_wrap", "cudagraph_mm_encoder", "compile_ranges_endpoints"),
    *("inductor_passes", "dynamic_shapes_config", "local_cache_dir", "fast_moe_cold_start"),
}


def read_vllm(words: list[str]) -> Reading:
    """Read what the line asks of the planner. Raise ``BadInputError`` naming the option."""
    options = read([*normal(words)], SPECS, VLLM)
    options.drop(("", "None"))
    compilation, speculative = _objects(options)
    given = Given(
        max_batch_size=options.whole("--max-num-seqs"),
        max_num_batched_tokens=options.whole("--max-num-batched-tokens", 1, human_readable),
        graph_sizes=_sizes(options, compilation),
        graph_maximum=_maximum(options, compilation),
        tp_size=_tp_size(options, compilation),
    )
    base = PlanRequest(
        spec_tokens(speculative),
        1,
        POLICY,
        interactivity=options.text("--performance-mode") == "interactivity",
        capture_mode=graph_mode(options, compilation),
        drafting=drafting(speculative),
    )
    reading = Reading("vLLM", base, given, [*_said(options, compilation, speculative)])
    reading.add_unknown(options.unknown, UNPLANNED)
    ranks = options.whole(DATA_PARALLEL) or 1
    if ranks > 1:
        reading.warnings.append(
            f"{DATA_PARALLEL} {ranks}: not planned (a rank pads to the largest batch of all ranks)"
        )
    if options.text("--performance-mode") == "throughput":
        reading.default_factor = 2
    return scheduled(reading, speculative, ranks)


def _objects(options: Options) -> tuple[JsonObject, JsonObject]:
    compilation = options.json(COMPILATION)
    speculative = {k.replace("-", "_"): v for k, v in options.json(SPECULATIVE).items()}
    for option, key in (("--spec-tokens", "num_speculative_tokens"), ("--spec-method", "method")):
        if option in options:
            if key in speculative:
                raise BadInputError(f"{option}: {key} is in {SPECULATIVE} too. Drop one")
            speculative[key] = options.text(option)
    return compilation, speculative


def _sizes(options: Options, compilation: JsonObject) -> tuple[int, ...] | None:
    option, key = "--cudagraph-capture-sizes", "cudagraph_capture_sizes"
    inside = compilation.get(key)
    if inside is None:
        return options.numbers(option) or None
    if option in options:
        raise BadInputError(f"{option}: {key} is in {COMPILATION} too. Drop one")
    return number_list(f"{COMPILATION} {key}", inside)


def _maximum(options: Options, compilation: JsonObject) -> int | None:
    option, key = "--max-cudagraph-capture-size", "max_cudagraph_capture_size"
    inside = compilation.get(key)
    if inside is None:
        return options.whole(option)
    if option in options:
        raise BadInputError(f"{option}: {key} is in {COMPILATION} too. Drop one")
    return whole(f"{COMPILATION} {key}", inside)


def _tp_size(options: Options, compilation: JsonObject) -> int | None:
    """Return the ranks only with the sequence-parallelism pass, which alone has a rule for them."""
    passes = compilation.get("pass_config") or {}
    is_on = isinstance(passes, dict) and bool(passes.get("enable_sp"))
    return options.whole("--tensor-parallel-size") if is_on else None


def _said(options: Options, compilation: JsonObject, speculative: JsonObject) -> Iterator[str]:
    used = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode"}
    for key in compilation.keys() - used - _OTHER_KEYS - {"pass_config"}:
        yield f"{COMPILATION} {key}: not understood"
    yield from said_of_drafts(speculative)
