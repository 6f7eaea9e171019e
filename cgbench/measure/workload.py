"""The requests that are decoded: prompts from a file, or random tokens for random weights."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cgbench.errors import BadInputError

WORKLOAD_VERSION = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """``prompts`` are token ids, none empty. ``source`` is what the record calls them.

    ``one_wave``: decode only as many prompts as the batch has rows, not all of them; for random
    weights, where a longer generation would say nothing more.
    """

    source: str
    prompts: tuple[tuple[int, ...], ...]
    one_wave: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts)

    @property
    def sha256(self) -> str:
        """A digest of all token ids: equal workloads, equal digest."""
        return sha256_of(self.prompts)

    def waves(self, batch_size: int) -> list[list[list[int]]]:
        """All prompts in waves of ``batch_size``; repeated where there are fewer than that."""
        count = batch_size if self.one_wave else max(batch_size, len(self.prompts))
        requests = [list(self.prompts[i % len(self.prompts)]) for i in range(count)]
        return [requests[i : i + batch_size] for i in range(0, count, batch_size)]

    def contexts(self, batch_size: int, context_len: int) -> list[list[int]]:
        """``batch_size`` prompts of exactly ``context_len`` tokens, for the timed pass.

        Each starts with its own prompt and goes on with the ones after it.
        """
        return [self._context(i, context_len) for i in range(batch_size)]

    def _context(self, first: int, context_len: int) -> list[int]:
        tokens: list[int] = []
        index = first
        while len(tokens) < context_len:
            tokens += self.prompts[index % len(self.prompts)]
            index += 1
        return tokens[:context_len]


def sha256_of(token_lists: Sequence[Sequence[int]]) -> str:
    """A digest of lists of token ids, their boundaries included."""
    digest = hashlib.sha256()
    for tokens in token_lists:
        digest.update((" ".join(map(str, tokens)) + "\n").encode())
    return digest.hexdigest()


def read_prompts(path: Path) -> list[str]:
    """The ``prompt`` fields of a JSON-lines file.

    Raises ``BadInputError`` naming the file and the line.
    """
    try:
        # Not splitlines: JSON strings may hold other line ends, such as U+2028, as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"--prompts {path}: {error}") from error
    prompts = [_prompt(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise BadInputError(f"--prompts {path}: holds no prompt")
    return prompts


def _prompt(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInputError(f"--prompts {path}: line {number} is not JSON: {error}") from error
    prompt = entry.get("prompt") if isinstance(entry, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise BadInputError(f'--prompts {path}: line {number} has no text under "prompt"')
    return prompt


def text_workload(
    source: str, texts: Sequence[str], encode: Callable[[str], list[int]]
) -> Workload:
    """Tokenised prompts. ``encode`` is the checkpoint's own tokenizer, special tokens included.

    Raises ``BadInputError`` for a prompt that has no tokens.
    """
    prompts = tuple(tuple(encode(text)) for text in texts)
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise BadInputError(f"--prompts {source}: prompt {number} has no tokens")
    return Workload(source, prompts)


def random_workload(vocab_size: int, count: int, length: int, seed: int) -> Workload:
    """``count`` prompts of ``length`` uniformly random tokens, the same for the same seed."""
    draw = random.Random(seed)
    prompts = tuple(tuple(draw.randrange(vocab_size) for _ in range(length)) for _ in range(count))
    return Workload(f"random tokens, seed {seed}", prompts, one_wave=True)
