"""Declare once what each part inside the fields of ``run.json`` must be.

What tables and comparisons read must be there. Everything else may be missing, but must be of its
type. Written against the standard library alone, as ``schema`` is.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cgbench.inputs import JsonObject
from cgbench.rundir.schema import DRAFTS, LARGEST, MAX_TEXT, REQUESTS, Range


class Kind(NamedTuple):
    """A ``Kind`` is what a JSON value may be. ``meaning`` states it in words, and ``holds`` decides
    whether a value is one.
    """

    meaning: str
    holds: Callable[[Any], bool]


class Part(NamedTuple):
    """A ``Part`` is a part of the record. ``path`` has ``[]`` for every element of a list, and
    ``*`` for every key of an object. A part that is ``needed`` must be there if what holds it is.
    """

    path: str
    kind: Kind
    needed: bool = False


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int | float)


def _whole(within: Range, words: str = "an int") -> Kind:
    return Kind(
        f"{words} of {within}",
        lambda value: type(value) is int and within.least <= value <= within.most,
    )


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.meaning} or null", lambda value: value is None or kind.holds(value))


def _list_of(kind: Kind) -> Kind:
    return Kind(
        f"a list of {kind.meaning.removeprefix('an ').removeprefix('a ')}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def _once(kind: Kind) -> Kind:
    """Return ``kind`` limited to lists without repetitions."""
    return Kind(
        f"{kind.meaning}, each once",
        lambda value: kind.holds(value) and len(set(value)) == len(value),
    )


TEXT = Kind("a str", _is_text)
LABEL = Kind(
    "a str that can be printed",
    lambda value: (
        _is_text(value) and value.strip() != "" and value.isprintable() and len(value) <= MAX_TEXT
    ),
)
FLAG = Kind("a bool", lambda value: isinstance(value, bool))
INTEGER = Kind("an int", lambda value: type(value) is int)
COUNT = _whole(Range(0, LARGEST))
NUMBER = Kind("a number", _is_number)
AMOUNT = Kind("a number from 0", lambda value: _is_number(value) and value >= 0)
RATE = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
OBJECT = Kind("a dict", lambda value: isinstance(value, dict))
SCALAR = Kind("a str, number, bool or null", _is_scalar)
SETTING = Kind(
    "a str, number, bool or null, or a list of them",
    lambda value: all(map(_is_scalar, value)) if isinstance(value, list) else _is_scalar(value),
)


def _parts(prefix: str, kind: Kind, names: str) -> tuple[Part, ...]:
    return tuple(Part(f"{prefix}.{name}", kind) for name in names.split())


PARTS = (
    Part("model.label", LABEL, needed=True),
    Part("model.fingerprint", LABEL, needed=True),
    *_parts(
        "model", TEXT, "head experts_path router_path shared_expert_path latent_path kv_format"
    ),
    *_parts("model", FLAG, "random_weights"),
    *_parts("model", COUNT, "num_parameters head_num_parameters weight_bytes kv_bytes"),
    Part("model.tensor_parallel", OBJECT),
    Part("model.tensor_parallel.collectives", _list_of(OBJECT), needed=True),
    Part("workload.version", COUNT, needed=True),
    Part("workload.sha256", LABEL, needed=True),
    Part("workload.num_prompts", _whole(Range(1, LARGEST)), needed=True),
    Part("workload.context_band_tokens", COUNT, needed=True),
    Part("workload.*", SETTING),
    Part("arguments.model", TEXT, needed=True),
    Part("arguments.max_new_tokens", COUNT, needed=True),
    Part("arguments.ignore_eos", FLAG, needed=True),
    Part("arguments.seed", INTEGER, needed=True),
    *_parts(
        "arguments",
        TEXT,
        "attention capture_unit chat_template compile device dtype policy role",
    ),
    *_parts("arguments", FLAG, "cold_l2 nvtx save_tokens"),
    *_parts("arguments", COUNT, "context_len max_num_batched_tokens processes"),
    *_parts("arguments", _list_of(COUNT), "spec_tokens batch_sizes capture_sizes"),
    *_parts("arguments", _list_of(TEXT), "scopes"),
    *_parts("arguments", _or_null(TEXT), "acceptance head prompts tp_head"),
    *_parts("arguments", _or_null(COUNT), "iterations max_num_seqs num_prompts tp"),
    *_parts("arguments", _or_null(AMOUNT), "precision min_time max_time"),
    Part("arguments.*", SETTING),
    Part("environment.gpu", _or_null(TEXT), needed=True),
    *_parts("environment", _or_null(TEXT), "cpu driver torch transformers cgbench_commit"),
    Part("environment.*", SCALAR),
    Part("plans[]", OBJECT),
    Part("plans[].spec_tokens", _whole(DRAFTS), needed=True),
    Part("plans[].batch_sizes", _once(_list_of(_whole(REQUESTS))), needed=True),
    Part("plans[].*", SETTING),
    Part("warnings", _list_of(TEXT)),
    Part("resumed", _list_of(OBJECT)),
    Part("resumed[].utc", TEXT, needed=True),
    Part("resumed[].kept_batch_sizes", _list_of(_whole(REQUESTS))),
    Part("resumed[].kept_processes", _list_of(COUNT)),
    Part("resumed[].process", COUNT),
    Part("capture.*", SCALAR),
    *(
        part
        for name in ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w")
        for part in (
            Part(f"telemetry.{name}", OBJECT),
            Part(f"telemetry.{name}.median", AMOUNT, needed=True),
            Part(f"telemetry.{name}.*", AMOUNT),
        )
    ),
    *_parts("telemetry", COUNT, "blocks other_processes"),
    Part("telemetry.discarded", OBJECT),
    Part("telemetry.discarded.*", COUNT),
    Part("telemetry.throttle_reasons", _list_of(TEXT)),
    Part("floor.limits", OBJECT),
    Part("floor.limits.read_bytes_per_s", RATE, needed=True),
    Part("floor.limits.flops_per_s", RATE, needed=True),
    Part("floor.limits.fp8_flops_per_s", RATE),
    Part("floor.accounts", _list_of(OBJECT)),
    Part("seconds.*", AMOUNT),
    *_parts("engine", TEXT, "name version arguments turns"),
    *_parts("engine", _or_null(TEXT), "policy"),
    *_parts("engine", _list_of(TEXT), "variables logs findings failures"),
    *_parts("engine", AMOUNT, "import_s start_s"),
    *_parts("engine", _or_null(COUNT), "memory_bytes"),
    Part("engine.facts", OBJECT),
    Part("engine.facts.*", TEXT),
    *_parts("engine", _list_of(OBJECT), "phases profiles"),
    *(
        Part(f"engine.{name}[].spec_tokens", _whole(DRAFTS), needed=True)
        for name in ("phases", "profiles")
    ),
    Part("engine.phases[].phase", TEXT, needed=True),
    *(
        Part(f"engine.phases[].{name}", _list_of(COUNT), needed=True)
        for name in ("planned", "captured", "piece_tokens")
    ),
    Part("engine.phases[].note", TEXT, needed=True),
)


class _Missing:
    """This class stands for what is not there."""


_MISSING = _Missing()


def part_faults(raw: JsonObject) -> Iterator[str]:
    """Yield what is wrong within the fields of a record, whose own types have been checked."""
    for part in PARTS:
        for name, value in _found(raw, part.path):
            is_there = value is not _MISSING
            if (is_there or part.needed) and not part.kind.holds(value):
                yield f"field {name} is missing or is not {part.kind.meaning}"
    planned = [plan["spec_tokens"] for plan in raw["plans"]]
    if len(set(planned)) < len(planned):
        yield "field plans has a spec_tokens twice"


def _found(raw: JsonObject, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each value at ``path`` with its own name. It is ``_MISSING`` if what would hold it
    lacks it.
    """
    found: list[tuple[str, Any]] = [("", raw)]
    for step in path.split("."):
        name, is_every = step.removesuffix("[]"), step.endswith("[]")
        found = [inner for at, value in found for inner in _inside(at, value, name)]
        if is_every:
            lists = [(at, value) for at, value in found if isinstance(value, list)]
            found = [(f"{at}[{i}]", each) for at, value in lists for i, each in enumerate(value)]
    yield from found


def _inside(at: str, value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        return
    for key in [*value] if name == "*" else [name]:
        yield f"{at}.{key}" if at else key, value.get(key, _MISSING)
