"""A launch line, or an engine's configuration file, as a request to the planner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from cgbench.errors import BadInputError
from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.engine_defaults import raise_hint, with_defaults
from cgbench.planning.gpus import Gpu
from cgbench.planning.launch_lines import fastdeploy_line, sglang_line, tensorrt_llm_line, vllm_line
from cgbench.planning.launch_lines.config_file import as_words, read_config
from cgbench.planning.launch_lines.option_reader import assignments, split
from cgbench.planning.launch_lines.reading import Reading
from cgbench.planning.plan_request import CaptureMode, PlanRequest
from cgbench.planning.policies import sglang

FROM = "--from"


@dataclass(frozen=True)
class Launch:
    """What a line asks of the planner: a request with the engine's defaults in it.

    ``notes`` are the defaults that the plan depends on. ``warnings`` name what the plan does not
    follow. ``schedule`` is set where the draft length follows the batch size.
    """

    engine: str
    request: PlanRequest
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    schedule: DraftSchedule | None = None


@dataclass(frozen=True, slots=True)
class _Engine:
    """How an engine is started, and what reads its words."""

    module: ModuleType
    read: Callable[[list[str]], Reading]
    starts: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]


_ENGINES = {
    "vllm": _Engine(
        vllm_line,
        vllm_line.read_vllm,
        (
            ("vllm", "serve"),
            ("-m", "vllm.entrypoints.openai.api_server"),
            ("-m", "vllm.entrypoints.cli.main", "serve"),
        ),
        ("compilation-config", "cudagraph-capture-sizes", "max-num-batched-tokens", "max-num-seqs"),
    ),
    "sglang": _Engine(
        sglang_line,
        sglang_line.read_sglang,
        (("-m", "sglang.launch_server"), ("sglang", "serve")),
        ("speculative-algorithm", "mem-fraction-static", "max-running-requests", "model-path"),
    ),
    "tensorrt-llm": _Engine(
        tensorrt_llm_line,
        tensorrt_llm_line.read_tensorrt_llm,
        (("trtllm-serve", "serve"), ("trtllm-serve",)),
        ("cuda-graph-config", "kv-cache-config", "max-num-tokens", "max-batch-size"),
    ),
    "fastdeploy": _Engine(
        fastdeploy_line,
        fastdeploy_line.read_fastdeploy,
        (
            ("-m", "fastdeploy.entrypoints.openai.api_server"),
            ("-m", "fastdeploy.entrypoints.api_server"),
        ),
        ("graph-optimization-config", "engine-worker-queue-port"),
    ),
}
_IMAGES = {"vllm/vllm-openai": "vllm"}


def read_launch(
    line: str | None, config: Path | None, gpu: Gpu | None, policy: str | None = None
) -> Launch:
    """The request of a launch line, of a configuration file, or of both.

    ``policy`` names another release of the line's engine. Raises ``BadInputError`` for a line that
    the engine would not read, and ``PlanError`` for what it refuses.
    """
    words, name = _words(line, config)
    engine = _ENGINES[name]
    reading = engine.read(words)
    if line is not None:
        reading.warnings += _of_environment(engine, line)
    return _finished(reading, gpu, _policy(reading, policy))


def _words(line: str | None, config: Path | None) -> tuple[list[str], str]:
    """The engine's own words, its file's included, and its name."""
    if line is None:
        assert config is not None
        found = read_config("--config", config)
        name = _engine_of_keys(config, [*found])
        return _with_file([], name, config), name
    words = split(FROM, line)
    name, own = _engine_of(words)
    given = _file_in(own) if name in ("vllm", "sglang") else None
    if given is not None and config is not None:
        raise BadInputError(f"--config {config}: {FROM} names a --config too; drop one")
    if given is not None:
        at = own.index("--config")
        own = own[:at] + own[at + 2 :]
    file = config or given
    return (_with_file(own, name, file) if file else own), name


def _file_in(words: Sequence[str]) -> Path | None:
    if "--config" not in words:
        return None
    at = words.index("--config")
    if at + 1 == len(words):
        raise BadInputError("--config: needs a value")
    return Path(words[at + 1])


def _with_file(words: list[str], name: str, file: Path) -> list[str]:
    """vLLM and SGLang read a file's values as words before the others; TensorRT-LLM after."""
    if name == "tensorrt-llm":
        return [*words, "--config", str(file)]
    return [*as_words(read_config("--config", file)), *words]


def _engine_of(words: Sequence[str]) -> tuple[str, list[str]]:
    for at, word in enumerate(words):
        for image, name in _IMAGES.items():
            if word.partition(":")[0].endswith(image):
                return name, [*words[at + 1 :]]
        for name, engine in _ENGINES.items():
            for start in engine.starts:
                if _begins([Path(word).name, *words[at + 1 :]], start):
                    return name, [*words[at + len(start) :]]
    raise BadInputError(
        f"{FROM} {' '.join(words)[:60]}: starts no known engine; it must hold vllm serve, "
        "python -m sglang.launch_server, trtllm-serve or "
        "python -m fastdeploy.entrypoints.openai.api_server"
    )


def _begins(words: Sequence[str], start: tuple[str, ...]) -> bool:
    return tuple(words[: len(start)]) == start


def _engine_of_keys(config: Path, keys: Sequence[str]) -> str:
    dashed = {key.replace("_", "-") for key in keys}
    scores = {name: len(dashed & {*engine.keys}) for name, engine in _ENGINES.items()}
    best = max(scores, key=lambda name: scores[name])
    if not scores[best]:
        raise BadInputError(f"--config {config}: names no key of a known engine; give {FROM} too")
    return best


def _of_environment(engine: _Engine, line: str) -> Iterator[str]:
    known: Mapping[str, str] = engine.module.ENVIRONMENT
    for name, value in assignments(split(FROM, line)).items():
        if name in known:
            yield f"{name}={value}: not planned; {known[name]}"


def _policy(reading: Reading, policy: str | None) -> str:
    own = reading.request.policy
    if policy is None:
        return own
    family = own.rpartition("-")[0]
    if not policy.startswith(family):
        raise BadInputError(f"--policy {policy}: {FROM} starts {reading.engine}; give {family}-..")
    return policy


def _finished(reading: Reading, gpu: Gpu | None, policy: str) -> Launch:
    base = reading.given.applied(replace(reading.request, policy=policy))
    found = with_defaults(base, gpu, reading.given.names(), reading.num_gpus)
    request, schedule = found.request, None
    if reading.schedule is not None:
        schedule = reading.schedule(request.max_batch_size)
        request = replace(request, schedule=schedule)
    notes = (*found.notes, *raise_hint(request), *_prefill(request, gpu))
    return Launch(reading.engine, request, notes, tuple(reading.warnings), schedule)


def _prefill(request: PlanRequest, gpu: Gpu | None) -> Iterator[str]:
    """SGLang's graphs of prefills, which follow its chunk."""
    if request.policy.startswith("sglang-") and request.capture_mode is CaptureMode.FULL:
        most = sglang.default_prefill_tokens(gpu.memory_gib) if gpu else 4_096
        count = len(sglang.prefill_tokens(most))
        yield f"prefill: {count} graphs, 4 to {most} tokens, by the default --chunked-prefill-size"
