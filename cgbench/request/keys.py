"""Map requests to the flat keys that records keep them by, and back.

A request is a frozen dataclass of parts, which are frozen dataclasses of values. A value's key is
its field's name, unless the field's type states another ``Key``. So a new field is recorded, read
back and filled from its flag with no other change.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache
from os import PathLike, fspath
from types import NoneType
from typing import Annotated, Any, Self, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from cgbench.errors import BadInputError
from cgbench.inputs import shown
from cgbench.words import Scope

Setting: TypeAlias = "str | int | float | bool | list[str] | list[int] | None"
"""A record holds values of these types."""

Share = Annotated[float, "share"]
"""A share is a number above 0 and below 1, which a flag may state in percent."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Key:
    """A ``Key`` gives a field another name in records, and optionally its flag."""

    name: str
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A ``Value`` describes one value of a request.

    ``kind`` is its type, without the None of an optional value. ``may_be_none`` marks an optional
    one.
    """

    key: str
    flag: str
    kind: Any
    may_be_none: bool


class Typed:
    """A ``Typed`` part converts its values to the types of its fields, however Python states them.

    A list becomes a tuple, and a word its enum. Numbers and scopes are sets, so they are put in
    order. A list may be empty if its default is. Raise ``BadInputError``, naming the flag, for any
    other value.
    """

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, key, hint in _fields(type(self)):
            found = getattr(self, name)
            if is_dataclass(hint):
                _check_part(name, hint, found)
                continue
            wanted = _value(key, hint)
            value = _in_order(read(wanted, _as_json(found), wanted.flag))
            if value == () != _default(self, name):
                raise BadInputError(f"{wanted.flag}: is empty. Give at least one")
            object.__setattr__(self, name, value)


class Recorded(Typed):
    """A ``Recorded`` request is kept as one flat object, as ``run.json`` has it."""

    __slots__ = ()

    def to_record(self) -> dict[str, Setting]:
        """Return every value under its key, as JSON has it, in the order that records have."""
        values = dict(_flat(self))
        return {name: values[name] for name in sorted(values, key=_place)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str = "arguments") -> Self:
        """Return the request that was recorded. A key that an older record lacks gets its default.

        Raise ``BadInputError``, beginning with ``where``, for a key that no request has. Raise it
        too for a value that is not of its key's type.
        """
        known = {value.key: value for value in values_of(cls)}
        if unknown := sorted(record.keys() - known.keys() - UNMEASURED):
            raise BadInputError(f"{where}.{unknown[0]}: is unknown. A newer cgbench may read it")
        held = {name: found for name, found in record.items() if name in known}
        return cls.of({name: read(known[name], held[name], f"{where}.{name}") for name in held})

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Return the request of ``values`` by key, over the defaults.

        Each value has its key's type already.
        """
        return _changed(cls(), values)


UNMEASURED = frozenset({"output", "resume", "thin", "json", "explain", "debug"})
"""These flags state where results go. A record that holds them is read without them."""

ORDER = (
    *("model", "spec_tokens", "batch_sizes", "max_num_seqs", "scopes"),
    *("policy", "capture_sizes", "capture_unit"),
    *("head", "head_family", "head_concat", "head_hidden_in", "head_chain"),
    *("head_out_norm", "head_norm_form", "head_first_embed"),
    *("prompts", "num_prompts", "chat_template", "max_new_tokens", "context_len"),
    *("iterations", "precision", "min_time", "max_time", "processes", "cold_l2"),
    *("acceptance", "ignore_eos", "seed", "device", "dtype", "attention", "compile"),
    *("tp", "tp_head", "routing", "role", "max_num_batched_tokens", "nvtx", "save_tokens"),
    "checks",
)
"""Records were first written in this order. Newer keys follow, in the order of the fields."""


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def values_of(request: type[Any]) -> tuple[Value, ...]:
    """Return every value of a class of requests, part by part."""
    return tuple(_values(request))


def _values(part: Any) -> Iterator[Value]:
    for _, key, hint in _fields(part):
        if is_dataclass(hint):
            yield from _values(hint)
        else:
            yield _value(key, hint)


def _value(key: Key, hint: Any) -> Value:
    kinds = [each for each in get_args(hint) if each is not NoneType]
    may_be_none = NoneType in get_args(hint)
    flag = key.flag or "--" + key.name.replace("_", "-")
    return Value(key.name, flag, kinds[0] if may_be_none else hint, may_be_none)


def _fields(part: Any) -> tuple[tuple[str, Key, Any], ...]:
    """Return the name, key and type of each field of a part."""
    return _kept_fields(part)


# This is a separate function, because mypy does not take a class as hashable.
@cache
def _kept_fields(part: Any) -> tuple[tuple[str, Key, Any], ...]:
    hints = get_type_hints(part, include_extras=True)
    return tuple((each.name, *_keyed(each.name, hints[each.name])) for each in fields(part))


def _keyed(name: str, hint: Any) -> tuple[Key, Any]:
    keys = [mark for mark in get_args(hint) if type(mark) is Key]
    return (keys[0], get_args(hint)[0]) if keys else (Key(name), hint)


def _default(part: Any, name: str) -> object:
    return next(each.default for each in fields(part) if each.name == name)


def _check_part(name: str, wanted: Any, found: object) -> None:
    if not isinstance(found, wanted):
        raise BadInputError(f"{name} {shown(found)}: must be a {wanted.__name__}")


def _as_json(found: object) -> object:
    """Convert what Python may state in types that JSON lacks."""
    if isinstance(found, tuple | range):
        return [*found]
    return fspath(found) if isinstance(found, PathLike) else found


def _in_order(value: object) -> object:
    """Return distinct numbers in ascending order, and scopes in the order of the enum."""
    if not isinstance(value, tuple):
        return value
    if all(isinstance(each, int) for each in value):
        return tuple(sorted(set(value)))
    scopes = tuple(scope for scope in Scope if scope in value)
    return scopes if all(isinstance(each, Scope) for each in value) else value


def _flat(part: object) -> Iterator[tuple[str, Setting]]:
    for name, key, _ in _fields(type(part)):
        value = getattr(part, name)
        if is_dataclass(value):
            yield from _flat(value)
        else:
            yield key.name, _plain(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, tuple):
        return [*map(_plain, value)]
    return value.value if isinstance(value, StrEnum) else value


def _changed(part: _T, values: Mapping[str, object]) -> _T:
    changes: dict[str, object] = {}
    for name, key, _ in _fields(type(part)):
        value = getattr(part, name)
        if is_dataclass(value):
            changes[name] = _changed(value, values)
        elif key.name in values:
            changes[name] = values[key.name]
    return replace(part, **changes)  # type: ignore[type-var]


def read(wanted: Value, found: object, label: str) -> object:
    """Convert a JSON value to the type that a request has: a list to a tuple, a word to its enum.

    Raise ``BadInputError``, beginning with ``label``, for a value of another type.
    """
    if found is None and wanted.may_be_none:
        return None
    if get_origin(wanted.kind) is not tuple:
        return _one(wanted.kind, found, label)
    if not isinstance(found, list):
        raise BadInputError(f"{label} {shown(found)}: must be a list")
    return tuple(_one(get_args(wanted.kind)[0], each, label) for each in found)


def _one(kind: Any, found: object, label: str) -> object:
    kind = float if kind is Share else kind
    if issubclass(kind, StrEnum):
        words = [*map(str, kind)]
        if found not in words:
            raise BadInputError(f"{label} {shown(found)}: choose of {','.join(words)}")
        return kind(found)
    if kind is float and type(found) is int:
        return float(found)
    if type(found) is not kind:
        raise BadInputError(f"{label} {shown(found)}: must be {_WORDS[kind]}")
    return found


_WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
