"""Define the protocol between cgbench and an engine's process: one JSON object a line.

A call is ``{"call": NAME, "with": {...}}``. Its answer is ``{"done": {...}}``, or
``{"failed": LINE, "is_memory": ...}``. Times are seconds, and memory is bytes.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypeVar

_T = TypeVar("_T")

JsonObject: TypeAlias = dict[str, Any]
"""This is ``cgbench.inputs.JsonObject``, which a driver may not import."""

START, PREFILL, STEPS, PROFILE, TOKENS, STOP = (
    *("start", "prefill", "steps", "profile", "tokens", "stop"),
)


@dataclass(frozen=True)
class Start:
    """A ``Start`` states what an engine is started with.

    ``model`` is a folder or hub id. ``spec_tokens`` are the k that one process serves.
    ``kv_bytes`` None leaves the size of the KV cache to the engine. ``arguments`` go to the engine
    as they are, over those made here. ``request`` is the record of a run, which this tool's own
    driver reads.
    """

    model: str
    spec_tokens: list[int]
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    dtype: str
    device: str
    seed: int = 0
    is_dummy: bool = False
    has_own_code: bool = False
    kv_bytes: int | None = None
    arguments: JsonObject = field(default_factory=dict)
    request: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """A ``Started`` reports an engine that is ready.

    ``import_s`` and ``start_s`` are seconds. ``facts`` are versions, modes and backends in words.
    ``graphs`` lists what the engine captured: see ``CapturedGraphs``. ``options`` are the
    engine's own settings that decide what it captures, after its defaults.
    """

    version: str
    import_s: float
    start_s: float
    memory_bytes: int | None = None
    facts: dict[str, str] = field(default_factory=dict)
    graphs: list[JsonObject] = field(default_factory=list)
    options: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class CapturedGraphs:
    """A ``CapturedGraphs`` holds the graphs of one k and phase, as the engine's objects hold them.

    ``requests`` are the batch sizes with a whole graph, and ``tokens`` what these graphs hold.
    ``piece_tokens`` are the sizes with graphs in pieces.
    """

    spec_tokens: int
    phase: str
    requests: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    piece_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Prefill:
    """A ``Prefill`` begins a batch with ``spec_tokens`` drafts, in place of the one before.

    ``new_tokens`` are the most that a request may decode.
    """

    spec_tokens: int
    prompts: list[list[int]]
    new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Prefilled:
    """A ``Prefilled`` reports that every request of the batch has its first token.

    ``steps`` are the engine's steps until then. ``emitted`` are the tokens of each request so far.
    """

    seconds: float
    steps: int
    emitted: list[int]


@dataclass(frozen=True)
class Stepped:
    """A ``Stepped`` holds timed decode steps.

    ``wall_s [steps]`` are wall times. ``device_s [steps]`` are times by device events, for an
    engine whose own clock has them. ``emitted [steps][requests]`` are tokens. ``untimed`` holds
    those of the steps before, a request each. ``memory_bytes`` is the peak of the process.
    """

    wall_s: list[float]
    emitted: list[list[int]]
    untimed: list[int]
    device_s: list[float] | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Profiled:
    """A ``Profiled`` holds what the device did in ``steps`` profiled steps, as means of a step.

    ``busy_s`` is the union of all kernels' and copies' intervals, and ``kernel_s`` the sum of the
    kernels alone. Both are None without a GPU. Counts are a step's too. ``top`` has the longest
    kernels: name, seconds and count a step. ``problem`` is why nothing is known of the device, if
    the steps went well.
    """

    steps: int
    wall_s: float
    emitted: list[int]
    busy_s: float | None = None
    kernel_s: float | None = None
    kernels: float | None = None
    copies: float | None = None
    graph_launches: float | None = None
    kernel_launches: float | None = None
    top: list[tuple[str, float, float]] = field(default_factory=list)
    problem: str = ""


def call_line(name: str, asked: Any = None) -> str:
    """Return the line of one call."""
    return json.dumps({"call": name, "with": {} if asked is None else asdict(asked)}) + "\n"


def done_line(answer: Any) -> str:
    """Return the line of an answer. ``answer`` is a dataclass of this module, or a mapping."""
    told = answer if isinstance(answer, dict) else asdict(answer)
    return json.dumps({"done": told}) + "\n"


def failed_line(error: BaseException) -> str:
    """Return the line of a call that failed."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return json.dumps({"failed": text[:400], "is_memory": is_memory}) + "\n"


def read_as(kind: type[_T], raw: JsonObject) -> _T:
    """Return a message of ``kind``. Raise ``TypeError`` if fields are missing or unknown."""
    return kind(**raw)
