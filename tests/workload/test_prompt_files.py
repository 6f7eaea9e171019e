"""Prompts from files: JSON lines of texts and chats, and plain text."""

import json
from pathlib import Path

import pytest

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import read_prompts, to_jsonl

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def write(folder: Path, *texts: str, **options: bool) -> Path:
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "id": 1}, **options) + "\n" for text in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_prompts_are_read_as_written_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    texts = ["def f():\n    return 1\n", " é 漢 ", '"quoted"']
    assert read_prompts(write(tmp_path, *texts, ensure_ascii=False)) == texts


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\u0085"])
def test_only_newlines_end_a_line(tmp_path: Path, char: str) -> None:
    """JSON allows these unescaped inside a string, and json.dumps(ensure_ascii=False) writes so."""
    texts = [f"before{char}after"]
    assert read_prompts(write(tmp_path, *texts, ensure_ascii=False)) == texts


def test_texts_written_are_read_back(tmp_path: Path) -> None:
    texts = ["a\nb\r\n", "\u2028é", " "]
    file = tmp_path / "set.jsonl"
    file.write_text(to_jsonl(texts))
    assert read_prompts(file) == texts


def test_chats_and_texts_may_stand_in_one_file(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    extra = [CHAT[0] | {"name": "me"}, CHAT[1]]
    lines = [{"messages": CHAT}, {"prompt": "a"}, {"messages": extra, "id": 3}]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_prompts(file) == [CHAT, "a", CHAT]


def test_a_line_of_a_text_file_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b'  one \n\n{"prompt": "two"}\r\n \nthree')
    assert read_prompts(file) == ["  one ", '{"prompt": "two"}', "three"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"messages": []}, "must be a list"),
        ({"messages": "hello"}, "must be a list"),
        ({"messages": ["hello"]}, "must be a list"),
        ({"messages": [*CHAT, {"role": "user"}]}, "must be a list"),
        ({"messages": [{"role": "user", "content": ["parts"]}]}, "must be a list"),
        ({"messages": [*CHAT, {"role": "assistant", "content": "So."}]}, "the assistant's"),
        ({"messages": CHAT, "prompt": "a"}, 'either "prompt" or "messages"'),
        ({}, 'either "prompt" or "messages"'),
    ],
)
def test_a_bad_chat_is_named_by_its_line(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": CHAT}) + "\n" + json.dumps(entry))
    with pytest.raises(BadInputError) as error:
        read_prompts(file)
    assert str(error.value).startswith(f"--prompts {file}: line 2") and message in str(error.value)
