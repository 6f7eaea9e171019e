"""Read ``tokens.jsonl``, which holds the prompt and the tokens of each request of the generate
pass.
"""

from collections.abc import Iterator
from typing import Any, TypedDict, cast

from cgbench.inputs import JsonObject, parse_own_json
from cgbench.rundir.schema import DRAFTS, REQUESTS, Range
from cgbench.words import Mode, Scope

MAX_TOKEN_ID = 2**31 - 1


class SavedTokens(TypedDict):
    """A ``SavedTokens`` is one line: a ``TokenRow`` as it is written."""

    scope: str
    mode: str
    spec_tokens: int
    batch_size: int
    request: int
    prompt_ids: list[int]
    token_ids: list[int]


FIELDS = tuple(SavedTokens.__annotations__)


def parse_tokens(text: str) -> list[SavedTokens]:
    """Return the lines of ``text``.

    Raise ``ValueError``, with the line's number, if one is cut short, is not JSON or has something
    else in a field.
    """
    if text and not text.endswith("\n"):
        raise ValueError("cut short, its last line has no end")
    return [_row(line, number) for number, line in enumerate(text.split("\n")[:-1], start=1)]


def _row(line: str, number: int) -> SavedTokens:
    try:
        row = parse_own_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict) or row.keys() != set(FIELDS):
        raise ValueError(f"line {number}: must be an object of {', '.join(FIELDS)}")
    for name, is_right in _parts(row):
        if not is_right:
            raise ValueError(f"line {number}: {name} is not what it must be")
    return cast(SavedTokens, row)


def _parts(row: JsonObject) -> Iterator[tuple[str, bool]]:
    yield "scope", row["scope"] in [*Scope]
    yield "mode", row["mode"] in [*Mode]
    yield "spec_tokens", _is_whole(row["spec_tokens"], DRAFTS)
    yield "batch_size", _is_whole(row["batch_size"], REQUESTS)
    yield "request", _is_whole(row["request"], Range(0, MAX_TOKEN_ID))
    for name in ("prompt_ids", "token_ids"):
        yield name, _are_tokens(row[name])


def _is_whole(value: Any, within: Range) -> bool:
    return type(value) is int and within.least <= value <= within.most


def _are_tokens(ids: Any) -> bool:
    return isinstance(ids, list) and all(
        type(each) is int and 0 <= each <= MAX_TOKEN_ID for each in ids
    )
