"""Prompts for the target to continue: from files as they are, or made from sources and texts.

Every prompt has a group: what was made from one function or one paragraph is held out together.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import read_prompts
from mtp_head.functions import function_heads, request, with_header
from mtp_head.instructions import instructions
from mtp_head.puzzles import puzzles

SUFFIXES = (".jsonl", ".py", ".txt")
# Their documented functions are few, and what they test is no function's business.
SKIPPED_FOLDERS = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idle_test"}
MIN_PARAGRAPH_CHARS, MAX_PARAGRAPH_CHARS = 120, 600
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Prompt:
    """``kind``: file, code, text, chat-code or chat."""

    text: str
    kind: str
    group: str


def make_prompts(
    data: Iterable[Path],
    tokenizer: PreTrainedTokenizerBase,
    num_instructions: int,
    seed: int,
) -> list[Prompt]:
    """All prompts, each text once, shuffled. Without a chat template there are no chat prompts.

    Raises ``BadInputError`` naming what cannot be read.
    """
    rng = random.Random(seed)
    found: list[Prompt] = []
    for path in files(data):
        found += prompts_of_file(path, tokenizer, rng)
    found += function_prompts(puzzles(rng), tokenizer, rng)
    if tokenizer.chat_template:
        asked = instructions(num_instructions, rng)
        found += [Prompt(as_chat(tokenizer, text), "chat", text) for text in asked]
    distinct = list({prompt.text: prompt for prompt in found}.values())
    rng.shuffle(distinct)
    return distinct


def files(data: Iterable[Path]) -> Iterator[Path]:
    """The files named, and those of the folders named, in a fixed order."""
    for path in data:
        if path.is_dir():
            inside = sorted(p for suffix in SUFFIXES for p in path.rglob(f"*{suffix}"))
            yield from (p for p in inside if not SKIPPED_FOLDERS & set(p.relative_to(path).parts))
        elif path.suffix in SUFFIXES and path.is_file():
            yield path
        else:
            raise BadInputError(f"--data {path}: no folder, and no file of {', '.join(SUFFIXES)}")


def read_texts(path: Path) -> list[str]:
    """The prompts of a JSON-lines file. Raises ``BadInputError`` for one that is a chat."""
    prompts = read_prompts(path)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise BadInputError(f'--data {path}: only lines with text under "prompt" can be used')
    return texts


def prompts_of_file(
    path: Path, tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> list[Prompt]:
    if path.suffix == ".jsonl":
        return [Prompt(text, "file", text) for text in read_texts(path)]
    text = path.read_text("utf-8", errors="ignore")
    if path.suffix == ".py":
        return function_prompts(function_heads(text), tokenizer, rng)
    return [Prompt(paragraph, "text", paragraph) for paragraph in paragraphs(text)]


def function_prompts(
    heads: Iterable[tuple[str, str, str]], tokenizer: PreTrainedTokenizerBase, rng: random.Random
) -> list[Prompt]:
    """Each function as raw text to be completed and, with a chat template, as a request."""
    found: list[Prompt] = []
    for name, doc, code in heads:
        found.append(Prompt(with_header(code, rng), "code", name))
        if tokenizer.chat_template:
            asked = as_chat(tokenizer, request(name, doc, code, rng))
            found.append(Prompt(asked, "chat-code", name))
    return found


def as_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text as a user's message, up to where the assistant answers."""
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(rendered, str)
    return rendered


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose: neither headings and lists nor indented blocks."""
    for block in re.split(r"\n\s*\n", text):
        if block[:1].isupper() and MIN_PARAGRAPH_CHARS <= len(block) <= MAX_PARAGRAPH_CHARS:
            yield block.rstrip()


def held_out_groups(prompts: Iterable[Prompt], seed: int) -> set[str]:
    """One group in twenty: none of its prompts is trained on."""
    groups = sorted({prompt.group for prompt in prompts})
    random.Random(seed).shuffle(groups)
    return set(groups[: max(1, round(HELD_OUT_SHARE * len(groups)))])
