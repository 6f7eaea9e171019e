"""Read prompts from files: JSON lines of texts or chats, or plain text with a prompt a line."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cgbench.errors import BadInputError
from cgbench.inputs import lone_surrogate, parse_json, read_text

FILE_SUFFIXES = (".jsonl", ".txt")

MAX_FILE_BYTES = 64 << 20
"""A file of prompts may have at most this many bytes, a hundred times the largest named set."""

MAX_PROMPT_BYTES = 4 << 20
"""A prompt's line may have at most this many bytes, which is about a million tokens.

A tokenizer needs a hundred bytes of memory for each byte.
"""

Message: TypeAlias = dict[str, str]
"""A message is a dict with ``role`` and ``content``, as chat templates take it."""

Prompt: TypeAlias = str | list[Message]
"""A prompt is a text, or a chat in which it is the model's turn."""


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """A ``PromptTexts`` holds prompts as text, and where they are from.

    ``source`` is the name of the prompts in the record. ``licence`` (an SPDX name) and ``package``
    (with its version) are known for prompts that ship or have a name. ``instruction`` is that of
    ``PromptSet``.
    """

    source: str
    prompts: tuple[Prompt, ...]
    licence: str | None = None
    package: str | None = None
    instruction: str = ""


def read_prompts(file: Path) -> list[Prompt]:
    """Return the prompts of ``FILE.jsonl`` or ``FILE.txt``.

    A JSON line has text under ``prompt``, or a chat under ``messages``, in the form of OpenAI's
    API. Other fields are ignored. A line of a text file is one prompt, as it stands. Blank lines
    are skipped in both.

    Raise ``BadInputError`` with the file and the line if one is bad.
    """
    # Not splitlines: JSON strings may hold other line ends, such as U+2028, as they are.
    lines = read_text(f"--prompts {file}", file, MAX_FILE_BYTES).split("\n")
    _check_lengths(file, lines)
    parse = _parse_line if file.suffix == ".jsonl" else lambda file, number, line: line
    prompts = [parse(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise BadInputError(f"--prompts {file}: holds no prompt")
    return prompts


def to_jsonl(texts: Sequence[str]) -> str:
    """Return texts as JSON lines that ``read_prompts`` reads back.

    The same texts give the same bytes on every machine.
    """
    return "".join(json.dumps({"prompt": text}) + "\n" for text in texts)


def _check_lengths(file: Path, lines: Sequence[str]) -> None:
    """Raise ``BadInputError`` for a line that would keep the tokenizer busy for minutes."""
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_PROMPT_BYTES // 4 and (size := len(line.encode())) > MAX_PROMPT_BYTES:
            raise BadInputError(
                f"--prompts {file}: line {number}: {size:,} bytes, must be at most "
                f"{MAX_PROMPT_BYTES:,}"
            )


def _parse_line(file: Path, number: int, line: str) -> Prompt:
    where = f"--prompts {file}: line {number}"
    entry = parse_json(where, line)
    fields = entry if isinstance(entry, dict) else {}
    if ("prompt" in fields) == ("messages" in fields):
        raise BadInputError(f'{where} must have either "prompt" or "messages"')
    if "messages" in fields:
        return _checked_chat(where, fields["messages"])
    return _checked_text(where, fields["prompt"])


def _checked_text(where: str, prompt: Any) -> str:
    if not isinstance(prompt, str) or not prompt:
        raise BadInputError(f'{where} has no text under "prompt"')
    _check_encodable(where, prompt)
    return prompt


def _check_encodable(where: str, text: str) -> None:
    if (escape := lone_surrogate(text)) is not None:
        raise BadInputError(f"{where}: holds {escape} without its other half: must be text")


def _checked_chat(where: str, messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise BadInputError(
            f'{where}: "messages" must be a list of {{"role": ..., "content": ...}}, both text'
        )
    if messages[-1]["role"] == "assistant":
        raise BadInputError(f"{where}: the last message is the assistant's. Nothing is left to say")
    for message in messages:
        _check_encodable(where, message["role"] + message["content"])
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )
