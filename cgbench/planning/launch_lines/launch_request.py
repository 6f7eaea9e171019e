"""Read a launch line, or an engine's configuration file, as a request to the planner."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import ModuleType

from cgbench.errors import BadInputError
from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.engine_defaults import raise_hint, with_defaults
from cgbench.planning.gpus import Gpu
from cgbench.planning.launch_lines import fastdeploy_line, sglang_line, tensorrt_llm_line, vllm_line
from cgbench.planning.launch_lines.config_file import as_words, read_config
from cgbench.planning.launch_lines.no_engine import no_engine
from cgbench.planning.launch_lines.option_reader import is_option
from cgbench.planning.launch_lines.reading import Reading
from cgbench.planning.launch_lines.shell_line import assignments, commands, spaced_ends
from cgbench.planning.launch_lines.stated_release import image_family, stated_release
from cgbench.planning.launch_lines.typed_names import TypedNames
from cgbench.planning.plan_request import PlanRequest

FROM = "--from"

_File = tuple[str, Path]
"""It is the option that names a configuration file, and the file."""


@dataclass(frozen=True)
class Launch:
    """A ``Launch`` is what a launch line asks of the planner, with the engine's defaults in it.

    ``notes`` are the defaults that the plan depends on. ``warnings`` name what the plan does not
    follow. ``schedule`` is set if the draft length follows the batch size.
    """

    engine: str
    request: PlanRequest
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    schedule: DraftSchedule | None = None


@dataclass(frozen=True, slots=True)
class _Engine:
    """An ``_Engine`` describes how an engine is started, and what reads its words.

    ``file_options`` name its configuration file. ``joins_file`` allows an equals sign there too.
    """

    module: ModuleType
    read: Callable[[list[str]], Reading]
    starts: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]
    file_options: tuple[str, ...] = ("--config",)
    joins_file: bool = False


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
        file_options=("--config", "--extra_llm_api_options"),
        joins_file=True,
    ),
    "fastdeploy": _Engine(
        fastdeploy_line,
        fastdeploy_line.read_fastdeploy,
        (
            ("-m", "fastdeploy.entrypoints.openai.api_server"),
            ("-m", "fastdeploy.entrypoints.api_server"),
        ),
        ("graph-optimization-config", "engine-worker-queue-port", "max-num-seqs"),
        joins_file=True,
    ),
}
# The images that start their engine by themselves.
_STARTING_IMAGES = ("vllm",)


def read_launch(
    line: str | None, config: Path | None, gpu: Gpu | None, policy: str | None = None
) -> Launch:
    """Return the request of a launch line, of a configuration file, or of both.

    ``policy`` names another release of the line's engine. Raise ``BadInputError`` for a line that
    the engine would not read, and ``PlanError`` for what it refuses.
    """
    words, name = _words(line, config)
    engine = _ENGINES[name]
    typed = TypedNames(words, engine.module.SPECS)
    with typed.in_errors():
        reading = engine.read(words)
    reading.warnings = [*map(typed.in_message, reading.warnings)]
    if line is not None:
        reading.warnings += [*spaced_ends(line), *_of_environment(engine, line)]
    if line is not None and policy is None:
        _follow_release(reading, line)
    taken = _policy(reading, policy)
    with typed.in_errors():
        return _finished(reading, gpu, taken)


def _words(line: str | None, config: Path | None) -> tuple[list[str], str]:
    """Return the engine's own words, with those of its file, and its name."""
    if line is None:
        assert config is not None
        found = read_config("--config", config)
        name = _engine_of_keys(config, [*found])
        return _with_file([], name, ("--config", config)), name
    name, own = _engine_of(line)
    own, given = _file_in(own, _ENGINES[name])
    if given is not None and config is not None:
        raise BadInputError(f"--config {config}: {FROM} names {given[1]} too. Drop one")
    file = ("--config", config) if config else given
    return (_with_file(own, name, file) if file else own), name


def _file_in(words: list[str], engine: _Engine) -> tuple[list[str], _File | None]:
    """Return the words without the option that names a file, and that option with its file."""
    for word in words:
        if word.startswith("--config=") and not engine.joins_file:
            raise BadInputError(f"{word}: the engine reads no file from it. Write --config FILE")
    split_words = [part for word in words for part in _parted(word, engine.file_options)]
    at = [i for i, word in enumerate(split_words) if word in engine.file_options]
    if not at:
        return words, None
    if len(at) > 1:
        raise BadInputError(f"{split_words[at[1]]}: is given twice. Drop one")
    before, after = split_words[: at[0]], split_words[at[0] + 1 :]
    if not after or is_option(after[0]):
        raise BadInputError(f"{split_words[at[0]]}: needs a value")
    return before + after[1:], (split_words[at[0]], Path(after[0]))


def _parted(word: str, names: Sequence[str]) -> Sequence[str]:
    name, equals, value = word.partition("=")
    return (name, value) if equals and name in names else (word,)


def _with_file(words: list[str], name: str, given: _File) -> list[str]:
    """Return the words with a file's values before the others and after the model.

    TensorRT-LLM reads its own file.
    """
    option, file = given
    if name == "tensorrt-llm":
        return [*words, option, str(file)]
    if name in ("vllm", "sglang") and file.suffix.lower() not in (".yaml", ".yml"):
        raise BadInputError(f"--config {file}: the engine reads a file that ends in .yaml or .yml")
    model = [*takewhile(lambda word: not is_option(word), words)]
    own = as_words(read_config("--config", file), negates=name == "vllm")
    return [*model, *own, *words[len(model) :]]


def _engine_of(line: str) -> tuple[str, list[str]]:
    found = commands(FROM, line)
    # An image's own command may be spelled out after it.
    for started in (_by_command, _by_image):
        for words in found:
            for at in range(len(words)):
                if (engine := started(words[at:])) is not None:
                    return engine
    raise no_engine(FROM, line)


def _by_command(words: Sequence[str]) -> tuple[str, list[str]] | None:
    named = [Path(words[0]).name, *words[1:]]
    for name, engine in _ENGINES.items():
        for start in engine.starts:
            if tuple(named[: len(start)]) == start:
                return name, [*words[len(start) :]]
    return None


def _by_image(words: Sequence[str]) -> tuple[str, list[str]] | None:
    name = image_family(words[0])
    return (name, [*words[1:]]) if name in _STARTING_IMAGES else None


def _engine_of_keys(config: Path, keys: Sequence[str]) -> str:
    dashed = {key.replace("_", "-") for key in keys}
    scores = {name: len(dashed & {*engine.keys}) for name, engine in _ENGINES.items()}
    best = max(scores, key=lambda name: scores[name])
    if not scores[best]:
        raise BadInputError(f"--config {config}: names no key of a known engine. Give {FROM} too")
    return best


def _of_environment(engine: _Engine, line: str) -> Iterator[str]:
    """Yield warnings of variables that change the graphs, unless they have their usual value."""
    known: Mapping[str, tuple[str, str]] = engine.module.ENVIRONMENT
    for name, value in assignments(commands(FROM, line)).items():
        usual, reason = known.get(name, (value, ""))
        if value != usual:
            yield f"{name}={value}: not planned ({reason})"


def _follow_release(reading: Reading, line: str) -> None:
    """Plan the release that the line's image or package names, if it has a policy."""
    own = reading.request.policy
    stated = stated_release(commands(FROM, line), _family(own))
    if stated is None or stated.policy == own:
        return
    if stated.policy is None:
        reading.warnings.append(stated.unplanned(own))
        return
    reading.request = replace(reading.request, policy=stated.policy)
    reading.notes.append(f"{stated.policy}, because the line names {stated.word}")


def _family(policy: str) -> str:
    return policy.rpartition("-")[0]


def _policy(reading: Reading, policy: str | None) -> str:
    own = reading.request.policy
    if policy is None:
        return own
    family = _family(own)
    if not policy.startswith(family):
        raise BadInputError(f"--policy {policy}: {FROM} starts {reading.engine}. Give {family}-..")
    return policy


def _finished(reading: Reading, gpu: Gpu | None, policy: str) -> Launch:
    base = reading.given.applied(replace(reading.request, policy=policy))
    found = with_defaults(
        base, gpu, reading.given.names(), reading.num_gpus, reading.default_factor
    )
    request, schedule = found.request, None
    if reading.schedule is not None:
        schedule = reading.schedule(request.max_batch_size)
        request = replace(request, schedule=schedule)
    prefill = reading.prefill(gpu) if reading.prefill else ()
    notes = (*reading.notes, *found.notes, *raise_hint(request), *prefill)
    return Launch(reading.engine, request, notes, tuple(reading.warnings), schedule)
