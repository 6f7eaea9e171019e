"""vLLM's line: ``vllm serve``, or the API server's module (``vllm/utils/argparse_utils.py``).

Underscores count as dashes. Dotted forms (``-cc.cudagraph_mode=NONE``) are gathered to one object,
which comes after the words and so replaces an object that was given whole.
"""

import json
import re
from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject
from cgbench.planning.draft_schedule import from_ranges
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
from cgbench.planning.plan_request import CaptureMode, Drafting, PlanRequest

POLICY = VLLM_RELEASE

CONFIG = "--compilation-config"
SPECULATIVE = "--speculative-config"

SPECS = (
    Spec((CONFIG, "-cc")),
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
    "--cudagraph-metrics --kv-transfer-config --structured-outputs-config --attention-backend "
    "--enable-chunked-prefill --rope-scaling --max-logprobs --otlp-traces-endpoint --spec-model "
    "--disable-uvicorn-access-log --config-format --safetensors-load-strategy".split()
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
    "--additional-config": "plug-ins read it",
}

ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "runner V1 drafts without full graphs where it is 0",
    "VLLM_USE_BREAKABLE_CUDAGRAPH": "mixed batches are captured in another way",
}

_MODES = {
    "NONE": CaptureMode.NONE,
    "PIECEWISE": CaptureMode.PIECES,
    "FULL_DECODE_ONLY": CaptureMode.DECODE_ONLY,
    "FULL_AND_PIECEWISE": CaptureMode.FULL,
}

_PARALLEL = {"dflash", "dspark", "medusa", "mlp_speculator"}
_LOOKED_UP = {"ngram", "ngram_gpu", "suffix"}

# Keys of --compilation-config that change no size.
_OTHER_KEYS = {
    *("cache_dir", "backend", "custom_ops", "splitting_ops", "compile_sizes", "debug_dump_path"),
    *("inductor_compile_config", "cudagraph_num_of_warmups", "cudagraph_copy_inputs"),
    *("use_inductor", "compile_mm_encoder", "level", "mode"),
}

_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def read_vllm(words: list[str]) -> Reading:
    """What the line asks of the planner. Raises ``BadInputError`` naming the option."""
    options = read([*_normal(words)], SPECS, HARMLESS)
    compilation, speculative = _objects(options)
    given = Given(
        max_batch_size=options.whole("--max-num-seqs"),
        max_num_batched_tokens=options.whole("--max-num-batched-tokens", 1, human_readable),
        graph_sizes=_sizes(options, compilation),
        graph_maximum=_maximum(options, compilation),
        tp_size=_tp_size(options, compilation),
    )
    base = PlanRequest(
        _spec_tokens(speculative),
        1,
        POLICY,
        interactivity=options.text("--performance-mode") == "interactivity",
        capture_mode=_mode(options, compilation),
        drafting=_drafting(speculative),
    )
    reading = Reading("vLLM", base, given, [*_said(options, compilation, speculative)])
    reading.add_unknown(options.unknown, UNPLANNED)
    return _scheduled(reading, speculative)


def human_readable(text: str) -> int:
    """``1k`` is 1,000 and ``1K`` 1,024, as the engine reads a token budget."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([kKmMgG])?", text)
    if not found or (not found[2] and "." in found[1]):
        raise ValueError(text)
    number = float(found[1]) * _UNITS[found[2]] if found[2] else int(found[1])
    return int(number)


def _normal(words: list[str]) -> Iterator[str]:
    """Dashes for underscores, the forms of -O, and dotted forms as one object at the end."""
    dotted: dict[str, JsonObject] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            head, dot, tail = name.partition(".")
            name = head.replace("_", "-") + dot + tail
            word = name + equals + value
        if word.startswith("-O") and len(word) > 2:
            yield from ("--optimization-level", word[2:].removeprefix("="))
        elif name.startswith("-") and "." in name and not re.fullmatch(r"-[0-9.]+", name):
            text = value if equals else next(rest, "")
            _gather(dotted, name, text)
        else:
            yield word
    for name, gathered in dotted.items():
        yield from (name, json.dumps(gathered))


def _gather(dotted: dict[str, JsonObject], name: str, text: str) -> None:
    option, *keys = name.removesuffix("+").split(".")
    at = dotted.setdefault(option, {})
    for key in keys[:-1]:
        at = at.setdefault(key, {})
        if not isinstance(at, dict):
            raise BadInputError(f"{name}: is given as a value and as an object")
    parsed = text.split(",") if name.endswith("+") else _value(text)
    before = at.get(keys[-1])
    if isinstance(before, list) and isinstance(parsed, list):
        parsed = [*before, *parsed]
    at[keys[-1]] = parsed


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _objects(options: Options) -> tuple[JsonObject, JsonObject]:
    compilation = options.json(CONFIG)
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
        raise BadInputError(f"{option}: {key} is in {CONFIG} too; drop one")
    return number_list(f"{CONFIG} {key}", inside)


def _maximum(options: Options, compilation: JsonObject) -> int | None:
    option, key = "--max-cudagraph-capture-size", "max_cudagraph_capture_size"
    inside = compilation.get(key)
    if inside is None:
        return options.whole(option)
    if option in options:
        raise BadInputError(f"{option}: {key} is in {CONFIG} too; drop one")
    return whole(f"{CONFIG} {key}", inside)


def _tp_size(options: Options, compilation: JsonObject) -> int | None:
    """Tensor parallelism has a rule with the sequence-parallelism pass alone."""
    passes = compilation.get("pass_config") or {}
    is_on = isinstance(passes, dict) and bool(passes.get("enable_sp"))
    return options.whole("--tensor-parallel-size") if is_on else None


def _mode(options: Options, compilation: JsonObject) -> CaptureMode:
    level = (options.text("--optimization-level") or "").lower().removeprefix("o")
    if options.is_on("--enforce-eager") or level == "0":
        return CaptureMode.NONE
    given = compilation.get("cudagraph_mode")
    if given is None:
        return CaptureMode.PIECES if level == "1" else CaptureMode.FULL
    name = str(given).upper().removeprefix("CUDAGRAPHMODE.")
    if name not in _MODES:
        raise BadInputError(
            f"{CONFIG} cudagraph_mode {given}: is not planned; it must be one of "
            f"{', '.join(_MODES)}"
        )
    return _MODES[name]


def _spec_tokens(speculative: JsonObject) -> int:
    if not speculative:
        return 0
    tokens = speculative.get("num_speculative_tokens")
    if tokens is None:
        raise BadInputError(
            f"{SPECULATIVE}: num_speculative_tokens is missing; the engine takes it from the draft "
            "model, which is not read here"
        )
    return whole(f"{SPECULATIVE} num_speculative_tokens", tokens)


def _drafting(speculative: JsonObject) -> Drafting:
    method = str(speculative.get("method", "")).lower()
    if method in _LOOKED_UP or speculative.get("model") in _LOOKED_UP:
        return Drafting.WITHOUT_MODEL
    is_parallel = method in _PARALLEL or speculative.get("parallel_drafting") is True
    return Drafting.PARALLEL if is_parallel else Drafting.CHAIN


def _said(options: Options, compilation: JsonObject, speculative: JsonObject) -> Iterator[str]:
    used = {"cudagraph_capture_sizes", "max_cudagraph_capture_size", "cudagraph_mode"}
    for key in compilation.keys() - used - _OTHER_KEYS - {"pass_config"}:
        yield f"{CONFIG} {key}: not understood"
    if compilation.get("mode") in (0, "NONE", "none"):
        yield f"{CONFIG} mode {compilation['mode']}: without compilation no batch runs in pieces"
    if options.text("--performance-mode") == "throughput":
        yield "--performance-mode throughput: doubles the default budgets, which is not planned"
    if speculative.get("disable_padded_drafter_batch"):
        yield f"{SPECULATIVE} disable_padded_drafter_batch: drafts run without padding"


def _scheduled(reading: Reading, speculative: JsonObject) -> Reading:
    key = "num_speculative_tokens_per_batch_size"
    if speculative.get(key) is not None:
        most = reading.request.spec_tokens
        reading.schedule = lambda size: from_ranges(
            f"{SPECULATIVE} {key}", speculative[key], size, most
        )
    return reading
