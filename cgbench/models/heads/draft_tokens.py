"""Choose the tokens that a head may draft: the N likeliest, as FR-Spec does.

A file ranks them, or the ids of random weights do. Published ranks are lists that torch pickled.
Nothing is unpickled here, so such a file is refused with the command that converts it.

Source: Zhao et al. 2025, arXiv:2502.14856.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgbench.errors import BadInputError
from cgbench.inputs import check_file, parse_json, read_text, shown, shown_whole

COUNT_FLAG, FILE_FLAG = "--draft-vocab", "--draft-vocab-from"

MAX_FILE_BYTES = 64 << 20
"""A file of ranks may have at most this many bytes. A million counted tokens take a third of it."""

_PICKLES = (".pt", ".pth", ".pkl", ".bin")
# How a zip archive of torch begins, and a bare pickle.
_PICKLED = (b"PK\x03\x04", b"\x80")
_ID = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class DraftTokens:
    """This class holds the target's tokens that a head may draft, ascending.

    ``source`` says in words by what they were chosen.
    """

    ids: tuple[int, ...]
    source: str

    @property
    def label(self) -> str:
        """Return what a head's label says of them."""
        return f"{len(self.ids)} draft tokens {self.source}"


def choose_tokens(
    count: int | None, file: str | None, num_tokens: int, *, is_random: bool
) -> DraftTokens | None:
    """Return the ``count`` likeliest tokens of ``file``, or None if neither is stated.

    Without ``count`` they are all of the file's. ``num_tokens`` is the size of the vocabulary.
    Without a file they are the first ids, which only a model of random weights may take.

    Raise ``BadInputError``, which names the flag or the file, for tokens that cannot be chosen.
    """
    if count is not None and count > num_tokens:
        raise BadInputError(f"{COUNT_FLAG} {count}: the vocabulary has {num_tokens:,} tokens")
    if file is not None:
        return _of_file(count, Path(file), num_tokens)
    if count is None:
        return None
    if not is_random:
        raise BadInputError(
            f"{COUNT_FLAG} {count}: which tokens are likeliest is not known. Give {FILE_FLAG} FILE "
            "with the tokens of a corpus, likeliest first"
        )
    return DraftTokens(tuple(range(count)), "by id")


def _of_file(count: int | None, file: Path, num_tokens: int) -> DraftTokens:
    ranked = read_ranks(file, num_tokens)
    if count is not None and count > len(ranked):
        raise BadInputError(
            f"{COUNT_FLAG} {count}: {shown_whole(str(file))} ranks {len(ranked):,} tokens"
        )
    return DraftTokens(tuple(sorted(ranked[:count])), f"of {shown_whole(file.name)}")


def read_ranks(file: Path, num_tokens: int) -> list[int]:
    """Return the token ids of ``file``, likeliest first.

    It is a JSON list of ids in that order, a JSON object of counts by id, or text with an id a
    line. Of equal counts the lower id comes first.

    Raise ``BadInputError`` with the file and the place for anything else. Raise it for an id that
    is there twice or is not below ``num_tokens``, too.
    """
    where = f"{FILE_FLAG} {shown_whole(str(file))}"
    _check_no_pickle(where, file)
    text = read_text(where, file, MAX_FILE_BYTES)
    ids = _ids_of_json(where, text) if text.lstrip()[:1] in ("[", "{") else _ids_a_line(where, text)
    if not ids:
        raise BadInputError(f"{where}: holds no token")
    if (largest := max(ids)) >= num_tokens:
        raise BadInputError(
            f"{where}: token {shown(largest)} is out of the vocabulary of {num_tokens:,}. The file "
            "is of another model"
        )
    token, times = Counter(ids).most_common(1)[0]
    if times > 1:
        raise BadInputError(f"{where}: token {token} is there {times} times")
    return ids


def _check_no_pickle(where: str, file: Path) -> None:
    """Refuse a file that only unpickling could read, with the command that converts it."""
    check_file(where, file, MAX_FILE_BYTES)
    if file.suffix.lower() not in _PICKLES:
        with file.open("rb") as opened:
            if not opened.read(4).startswith(_PICKLED):
                return
    code = (
        "import json, pathlib, torch; "
        f"ids = torch.load({json.dumps(str(file))}, weights_only=True); "
        f"pathlib.Path({json.dumps(str(file.with_suffix('.json')))})"
        ".write_text(json.dumps([int(i) for i in ids]))"
    )
    raise BadInputError(
        f"{where}: is a pickle, which can run code and is not opened. If you trust it, convert it: "
        f"python -c {shlex.quote(code)}"
    )


def _ids_of_json(where: str, text: str) -> list[int]:
    found = parse_json(where, text)
    if isinstance(found, list):
        return [_whole(where, "token", each) for each in found]
    counts = {
        _id(where, "key", token): _whole(where, f"the count of token {shown(token)},", count)
        for token, count in found.items()
    }
    if len(counts) < len(found):
        raise BadInputError(f"{where}: counts a token twice")
    return sorted(counts, key=lambda token: (-counts[token], token))


def _whole(where: str, what: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise BadInputError(f"{where}: {what} {shown(value)}: must be a whole number from 0")
    return value


def _ids_a_line(where: str, text: str) -> list[int]:
    lines: Sequence[tuple[int, str]] = [*enumerate(text.split("\n"), 1)]
    return [_id(where, f"line {number}", line.strip()) for number, line in lines if line.strip()]


def _id(where: str, what: str, text: str) -> int:
    if not _ID.fullmatch(text):
        raise BadInputError(f"{where}: {what} {shown(text)}: must be a token id")
    return int(text)
