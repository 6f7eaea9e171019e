"""Prompts cut from the held-out texts: those that ship, and more to evaluate with."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

NUM_EVAL_PROMPTS = 96
NUM_SHIPPED_PROMPTS = 16
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 60, 240


def write_prompts(tokenizer: Tokenizer, held_out: dict[str, str], folder: Path) -> None:
    """`eval_prompts.jsonl`, and every sixth of them as the `prompts.jsonl` that ships."""
    prompts = cut_prompts(tokenizer, held_out)
    step = len(prompts) // NUM_SHIPPED_PROMPTS
    shipped = [{"prompt": entry["prompt"]} for entry in prompts[::step][:NUM_SHIPPED_PROMPTS]]
    write_jsonl(folder / "eval_prompts.jsonl", prompts)
    write_jsonl(folder / "prompts.jsonl", shipped)


def cut_prompts(tokenizer: Tokenizer, held_out: dict[str, str]) -> list[dict[str, Any]]:
    """Passages that begin where a reader would, a fair share from each file, none overlapping."""
    rng = random.Random(0)
    per_file = {name: passages(tokenizer, text, rng) for name, text in held_out.items()}
    for found in per_file.values():
        rng.shuffle(found)
    taken: list[dict[str, Any]] = []
    while len(taken) < NUM_EVAL_PROMPTS:
        for name, found in per_file.items():
            if found:
                taken.append({"prompt": found.pop(), "source": name})
    taken = taken[:NUM_EVAL_PROMPTS]
    rng.shuffle(taken)
    return taken


def passages(tokenizer: Tokenizer, text: str, rng: random.Random) -> list[str]:
    """Runs of whole lines from natural starts, each of a length drawn from the allowed range."""
    lines = text.splitlines()
    found, free_from = [], 0
    for start in natural_starts(lines):
        if start < free_from:
            continue
        wanted = rng.randint(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS)
        end = start + 1
        while end < len(lines) and num_tokens(tokenizer, lines[start : end + 1]) <= wanted:
            end += 1
        passage = "\n".join(lines[start:end]).rstrip()
        if end < len(lines) and num_tokens(tokenizer, [passage]) >= MIN_PROMPT_TOKENS:
            found.append(passage)
            free_from = end
    return found


def natural_starts(lines: list[str]) -> Iterator[int]:
    """Top-level definitions and methods in code, section titles in reStructuredText."""
    for number, line in enumerate(lines[:-1]):
        underlined = len(line) > 3 and lines[number + 1].strip("=-*~") == ""
        is_title = underlined and len(lines[number + 1]) >= len(line) and line[0].isalnum()
        if line.lstrip().startswith(("def ", "class ", "async def ")) or is_title:
            yield number


def num_tokens(tokenizer: Tokenizer, lines: list[str]) -> int:
    return len(tokenizer.encode("\n".join(lines)).ids)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
