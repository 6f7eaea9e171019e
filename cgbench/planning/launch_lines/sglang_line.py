"""Read SGLang's launch line: ``python -m sglang.launch_server``, or ``sglang serve``.

Its options are in ``srt/arg_groups``.
"""

from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject
from cgbench.planning.gpus import Gpu
from cgbench.planning.launch_lines.harmless_options import SGLANG
from cgbench.planning.launch_lines.option_reader import (
    Kind,
    Options,
    Spec,
    number_list,
    read,
    whole,
)
from cgbench.planning.launch_lines.reading import Given, Reading
from cgbench.planning.launch_lines.sglang_drafts import (
    ALGORITHM,
    adaptive_schedule,
    drafting,
    tree_width,
    verified,
)
from cgbench.planning.plan_request import (
    CaptureMode,
    PlanRequest,
)
from cgbench.planning.policies import sglang

POLICY = "sglang-0.5.23"

CONFIG = "--cuda-graph-config"

SPECS = (
    Spec((ALGORITHM, "--speculative-algo")),
    Spec(("--speculative-num-steps",)),
    Spec(("--speculative-eagle-topk",)),
    Spec(("--speculative-num-draft-tokens", "--speculative-dflash-block-size")),
    Spec(("--speculative-adaptive",), Kind.FLAG),
    Spec(("--speculative-adaptive-config",)),
    Spec(("--enable-multi-layer-eagle",), Kind.FLAG),
    Spec(("--cuda-graph-max-bs-decode", "--cuda-graph-max-bs")),
    Spec(("--cuda-graph-bs-decode", "--cuda-graph-bs"), Kind.LIST),
    Spec((CONFIG,)),
    Spec(("--cuda-graph-backend-decode",)),
    Spec(("--disable-cuda-graph",), Kind.FLAG),
    Spec(("--disable-decode-cuda-graph",), Kind.FLAG),
    Spec(("--disable-cuda-graph-padding",), Kind.FLAG),
    Spec(("--max-running-requests",)),
    Spec(("--tp-size", "--tensor-parallel-size", "--tp")),
    Spec(("--dp-size", "--data-parallel-size", "--dp")),
    Spec(("--attn-dp-size",)),
    Spec(("--attention-backend",)),
    Spec(("--deepep-mode",)),
    Spec(("--disaggregation-mode",)),
    Spec(("--debug-tensor-dump-output-folder",)),
    Spec(("--enable-mis",), Kind.FLAG),
    Spec(("--speculative-dspark-block-size",)),
    Spec(("--chunked-prefill-size",)),
    Spec(("--cuda-graph-max-bs-prefill",)),
    Spec(("--cuda-graph-bs-prefill",), Kind.LIST),
    Spec(("--cuda-graph-backend-prefill",)),
    Spec(("--disable-prefill-cuda-graph",), Kind.FLAG),
    Spec(("--enable-dp-attention",), Kind.FLAG),
)

UNPLANNED = {
    "--enable-lora": "batches with and without LoRA have graphs apart",
    "--lora-paths": "batches with and without LoRA have graphs apart",
    "--enable-two-batch-overlap": "sizes are aligned to two batches",
    "--enable-torch-compile": "small batches are compiled besides",
    "--pp-size": "each stage has graphs of its own",
    "--attn-cp-size": "sizes are aligned to the context-parallel ranks",
}

ENVIRONMENT: dict[str, tuple[str, str]] = {}

_KEYS = {
    "decode": ("backend", "max_bs", "bs"),
    "prefill": (
        *("backend", "max_bs", "bs", "max_context_size", "full_prefill_max_req"),
        *("full_prefill_prefix_chunk_tokens", "max_seq_len"),
    ),
}


def read_sglang(words: list[str]) -> Reading:
    """Read what the line asks of the planner. Raise ``BadInputError`` naming the option."""
    options = read(words, SPECS, SGLANG)
    decode, prefill = _phase(options, "decode"), _phase(options, "prefill")
    q, warnings = verified(options)
    tp_size, ranks = _attention_ranks(options)
    running = options.whole("--max-running-requests")
    given = Given(
        max_batch_size=max(running // ranks, 1) if running else None,
        graph_sizes=_sizes(options, decode),
        graph_maximum=_maximum(options, decode),
        tp_size=tp_size,
        pad=False if options.is_on("--disable-cuda-graph-padding") else None,
    )
    base = PlanRequest(
        q - 1,
        1,
        POLICY,
        module_per_draft=options.is_on("--enable-multi-layer-eagle"),
        tree_width=tree_width(options),
        capture_mode=_mode(options, decode),
        drafting=drafting(options),
    )
    reading = Reading("SGLang", base, given, [*warnings, *_said(words, ranks)])
    reading.num_gpus = options.whole("--tp-size") or 1
    reading.add_unknown(options.unknown, UNPLANNED)
    reading.prefill = lambda gpu: _prefill(options, prefill, gpu)
    if options.is_on("--speculative-adaptive"):
        reading.schedule = lambda size: adaptive_schedule(options, size)
    return reading


def _phase(options: Options, name: str) -> JsonObject:
    """Return what the JSON gives for decode or for prefill. It counts before the single options."""
    found = options.json(CONFIG)
    if unknown := found.keys() - _KEYS.keys():
        raise BadInputError(f"{CONFIG} {min(unknown)}: must be decode or prefill")
    phase = found.get(name, {})
    if not isinstance(phase, dict):
        raise BadInputError(f"{CONFIG} {name}: must be a JSON object")
    if unknown := phase.keys() - {*_KEYS[name]}:
        *others, last = _KEYS[name]
        raise BadInputError(
            f"{CONFIG} {name} {min(unknown)}: must be {', '.join(others)} or {last}"
        )
    return phase


def _prefill(options: Options, phase: JsonObject, gpu: Gpu | None) -> Iterator[str]:
    """Yield a line on the graphs of prefills, which follow the chunk if nothing else is given."""
    backend = phase.get("backend", options.text("--cuda-graph-backend-prefill"))
    off = options.is_on("--disable-cuda-graph") or options.is_on("--disable-prefill-cuda-graph")
    off = off or options.text("--disaggregation-mode") == "decode"
    if backend == "disabled" or (off and backend is None) or _is_eager(options):
        return
    label = f"{CONFIG} prefill"
    listed = phase.get("bs") or [*options.numbers("--cuda-graph-bs-prefill")]
    if listed:
        sizes = number_list(f"{label} bs", listed)
        yield f"prefill: {len(sizes)} graphs, {min(sizes)} to {max(sizes)} tokens"
        return
    most, why = options.whole("--cuda-graph-max-bs-prefill"), ""
    if phase.get("max_bs") is not None:
        most = whole(f"{label} max_bs", phase["max_bs"])
    if most is None:
        most = options.whole("--chunked-prefill-size", -1)
        why = ", by --chunked-prefill-size"
    if most is None:
        most = sglang.default_prefill_tokens(gpu.memory_gib) if gpu else 4_096
        why = ", by the default --chunked-prefill-size"
    if sizes := tuple(sglang.prefill_tokens(most)):
        yield f"prefill: {len(sizes)} graphs, 4 to {max(sizes)} tokens{why}"


def _attention_ranks(options: Options) -> tuple[int | None, int]:
    """Return the ranks that share a request's attention, if batches are gathered.

    The second value is how many groups of them divide the running requests.
    """
    tp = options.whole("--tp-size") or 1
    groups = options.whole("--attn-dp-size")
    if groups is None and options.is_on("--enable-dp-attention"):
        groups = options.whole("--dp-size")
    if groups is None or groups == 1:
        return None, 1
    if tp % groups:
        raise BadInputError(f"--attn-dp-size {groups}: must divide --tp-size {tp}")
    return tp // groups, groups


def _sizes(options: Options, decode: JsonObject) -> tuple[int, ...] | None:
    if decode.get("bs") is not None:
        return number_list(f"{CONFIG} decode bs", decode["bs"])
    return options.numbers("--cuda-graph-bs-decode") or None


def _maximum(options: Options, decode: JsonObject) -> int | None:
    if decode.get("max_bs") is not None:
        return whole(f"{CONFIG} decode max_bs", decode["max_bs"])
    return options.whole("--cuda-graph-max-bs-decode")


def _mode(options: Options, decode: JsonObject) -> CaptureMode:
    backend = decode.get("backend", options.text("--cuda-graph-backend-decode"))
    if backend is not None and backend not in ("full", "breakable", "disabled"):
        raise BadInputError(
            f"--cuda-graph-backend-decode {backend}: must be full, breakable or disabled"
        )
    off = options.is_on("--disable-cuda-graph") or options.is_on("--disable-decode-cuda-graph")
    # A named backend overrides the switches, but not the options that capture nothing.
    off = off or options.text("--disaggregation-mode") == "prefill"
    is_off = backend == "disabled" or (off and backend is None) or _is_eager(options)
    return CaptureMode.NONE if is_off else CaptureMode.FULL


def _is_eager(options: Options) -> bool:
    """Check that an option is given with which the engine captures nothing."""
    return (
        options.text("--attention-backend") in ("torch_native", "flex_attention")
        or options.text("--deepep-mode") == "normal"
        or "--debug-tensor-dump-output-folder" in options
        or options.is_on("--enable-mis")
    )


def _said(words: list[str], groups: int) -> Iterator[str]:
    typed = {word.partition("=")[0] for word in words}
    for name in ("--cuda-graph-max-bs", "--cuda-graph-bs"):
        if name in typed:
            yield f"{name}: 0.5.23 names it {name}-decode, and refuses the short name as ambiguous"
    if groups > 1:
        yield f"attention data parallelism: sizes are those of one of {groups} ranks' batches"
