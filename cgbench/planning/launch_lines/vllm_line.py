"""vLLM's line: ``vllm serve``, or the API server's module (``vllm/utils/argparse_utils.py``).

Underscores count as dashes. Dotted forms (``-cc.cudagraph_mode=NONE``) are gathered to one object,
which comes after the words and so replaces an object that was given whole.
"""

from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject
from cgbench.planning.engine_defaults import VLLM_RELEASE
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
    Spec(("--performance-mode",)),
    Spec(("--optimization-level", "-O")),
    Spec(("--enforce-eager",), Kind.FLAG, has_negative=True),
)

HARMLESS = frozenset(
    "--host --port --model --served-model-name --dtype --gpu-memory-utilization --api-key --seed "
    "--trust-remote-code --download-dir --load-format --revision --tokenizer --tokenizer-mode "
    "--quantization -q --kv-cache-dtype --block-size --swap-space --cpu-offload-gb --hf-overrides "
    "--enable-prefix-caching --no-enable-prefix-caching --disable-log-stats --disable-log-requests "
    "--no-enable-log-requests --enable-log-requests --uvicorn-log-level --chat-template "
    "--tool-call-parser --enable-auto-tool-choice --reasoning-parser --generation-config "
    "--allowed-origins --distributed-executor-backend --mm-processor-kwargs --limit-mm-per-prompt "
    "--enable-expert-parallel --async-scheduling --no-async-scheduling --language-model-only "
    "--cudagraph-metrics --structured-outputs-config --enable-sleep-mode --tokenizer-revision "
    "--enable-chunked-prefill --rope-scaling --max-logprobs --otlp-traces-endpoint --spec-model "
    "--disable-uvicorn-access-log --config-format --safetensors-load-strategy --no-enable-lora "
    "--no-enable-dbo --disable-lora --disable-dbo --disable-prefix-caching --lora-modules "
    "--max-loras --max-lora-rank --max-cpu-loras --code-revision --hf-config-path --hf-token "
    "--kv-cache-memory-bytes --moe-backend --linear-backend --nnodes --node-rank --master-addr "
    "--master-port --root-path --ssl-keyfile --ssl-certfile --middleware".split()
)

# What changes the graphs and has no rule here, with what it changes.
UNPLANNED = {
    "--enable-lora": "each graph is captured with LoRA and without",
    "--data-parallel-size": "a rank pads to the largest batch of all ranks",
    "-dp": "a rank pads to the largest batch of all ranks",
    "--enable-dbo": "batches are split in two",
    "--pipeline-parallel-size": "each stage has graphs of its own",
    "-pp": "each stage has graphs of its own",
    "--no-enable-chunked-prefill": "the token budget is at least the model's length",
    "--disable-chunked-prefill": "the token budget is at least the model's length",
    "--attention-backend": "one without graphs of k + 1 tokens a request runs them in pieces",
    "--attention-config": "a backend without graphs of k + 1 tokens runs them in pieces",
    "--kv-transfer-config": "a connector that works layer by layer leaves pieces alone",
    "--prefill-context-parallel-size": "graphs are those of one rank's part of a batch",
    "--decode-context-parallel-size": "graphs are those of one rank's part of a batch",
    "--max-num-active-seqs": "fewer requests than max_num_seqs decode together",
    "--additional-config": "plug-ins read it",
}

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "runner V1 drafts without full graphs where it is 0",
    "VLLM_USE_BREAKABLE_CUDAGRAPH": "mixed batches are captured in another way",
}

# Keys of --compilation-config that change no size.
_OTHER_KEYS = {
    *("cache_dir", "backend", "custom_ops", "splitting_ops", "compile_sizes", "debug_dump_path"),
    *("inductor_compile_config", "cudagraph_num_of_warmups", "cudagraph_copy_inputs"),
    *("use_inductor", "compile_mm_encoder", "mode", "compile_cache_save_format"),
    *("ir_enable_torch_wrap", "cudagraph_mm_encoder", "compile_ranges_endpoints"),
    *("inductor_passes", "dynamic_shapes_config", "local_cache_dir", "fast_moe_cold_start"),
}


def read_vllm(words: list[str]) -> Reading:
    """What the line asks of the planner. Raises ``BadInputError`` naming the option."""
    options = read([*normal(words)], SPECS, HARMLESS)
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
    if options.text("--performance-mode") == "throughput":
        reading.default_factor = 2
    return scheduled(reading, speculative)


def _objects(options: Options) -> tuple[JsonObject, JsonObject]:
    compilation = options.json(COMPILATION)
    speculative = {k.replace("-", "_"): v for k, v in options.json(SPECULATIVE).items()}
    for option, key in (("--spec-tokens", "num_speculative_tokens"), ("--spec-method", "method")):
        if option in options:
            if key in speculative:
                raise BadInputError(f"{option}: {key} is in {SPECULATIVE} too; drop one")
            speculative[key] = options.text(option)
    return compilation, speculative


def _sizes(options: Options, compilation: JsonObject) -> tuple[int, ...] | None:
    option, key = "--cudagraph-capture-sizes", "cudagraph_capture_sizes"
    inside = compilation.get(key)
    if inside is None:
        return options.numbers(option) or None
    if option in options:
        raise BadInputError(f"{option}: {key} is in {COMPILATION} too; drop one")
    return number_list(f"{COMPILATION} {key}", inside)


def _maximum(options: Options, compilation: JsonObject) -> int | None:
    option, key = "--max-cudagraph-capture-size", "max_cudagraph_capture_size"
    inside = compilation.get(key)
    if inside is None:
        return options.whole(option)
    if option in options:
        raise BadInputError(f"{option}: {key} is in {COMPILATION} too; drop one")
    return whole(f"{COMPILATION} {key}", inside)


def _tp_size(options: Options, compilation: JsonObject) -> int | None:
    """Tensor parallelism has a rule with the sequence-parallelism pass alone."""
    passes = compilation.get("pass_config") or {}
    is_on = isinstance(passes, dict) and bool(passes.get("enable_sp"))
    return options.whole("--tensor-parallel-size") if is_on else None


def _said(options: Options, compilation: JsonObject, speculative: JsonObject) -> Iterator[str]:
    used = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode"}
    for key in compilation.keys() - used - _OTHER_KEYS - {"pass_config"}:
        yield f"{COMPILATION} {key}: not understood"
    yield from said_of_drafts(speculative)
