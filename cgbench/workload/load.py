"""Make the requests that are decoded: prompts as token ids, or random tokens."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import Prompt, PromptTexts

WORKLOAD_VERSION = 2
"""Runs record this version of how a workload becomes timed contexts.

Since version 2 a timed block has one mean context at every k. Before, only its largest context was
bounded.
"""


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload holds the prompts that a run decodes, as token ids. No prompt is empty.

    ``source`` is the name of the prompts in the record. ``one_wave`` decodes only as many prompts
    as the batch has rows. It is for random tokens, of which a longer generation would show nothing
    more. ``chat_template`` is true if the tokenizer's template was put around every prompt.
    ``licence`` and ``package`` are those of ``PromptTexts``.
    """

    source: str
    prompts: tuple[tuple[int, ...], ...]
    one_wave: bool = False
    chat_template: bool = False
    licence: str | None = None
    package: str | None = None

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts)

    @property
    def longest_number(self) -> int:
        """Return the number of the first longest prompt, counted from 1."""
        return next(i for i, p in enumerate(self.prompts, 1) if len(p) == self.longest)

    @property
    def sha256(self) -> str:
        """Return a digest of all token ids. Equal workloads have equal digests."""
        return sha256_of(self.prompts)

    def waves(self, batch_size: int) -> list[list[list[int]]]:
        """Return all prompts in waves of ``batch_size``, the last of which may be smaller.

        Prompts are repeated if there are fewer than ``batch_size``. With ``one_wave`` there is one
        wave.
        """
        count = batch_size if self.one_wave else max(batch_size, len(self.prompts))
        requests = [list(self.prompts[i % len(self.prompts)]) for i in range(count)]
        return [requests[i : i + batch_size] for i in range(0, count, batch_size)]

    def contexts(self, batch_size: int, context_len: int) -> list[list[int]]:
        """Return ``batch_size`` prompts of exactly ``context_len`` tokens, for the timed pass.

        Each starts with its own prompt and goes on with the prompts after it.
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
    """Return a digest of lists of token ids. The boundaries of the lists count too."""
    digest = hashlib.sha256()
    for tokens in token_lists:
        digest.update((" ".join(map(str, tokens)) + "\n").encode())
    return digest.hexdigest()


def text_workload(
    texts: PromptTexts,
    encode: Callable[[Prompt], list[int]],
    last_token: int,
    *,
    chat_template: bool,
) -> Workload:
    """Return the workload of tokenised prompts.

    ``encode`` is the checkpoint's own tokenizer, special tokens included. ``last_token`` is the
    last token that the target has an embedding of. Raise ``BadInputError`` for a prompt without
    tokens, or with a token above ``last_token``.
    """
    prompts = tuple(tuple(encode(prompt)) for prompt in texts.prompts)
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise BadInputError(f"--prompts {texts.source}: prompt {number} has no tokens")
        if max(prompt) > last_token:
            raise BadInputError(
                f"--prompts {texts.source}: prompt {number} is token {max(prompt)} to MODEL's "
                f"tokenizer, and {last_token} is the last one with an embedding"
            )
    return Workload(
        source=texts.source,
        prompts=prompts,
        chat_template=chat_template,
        licence=texts.licence,
        package=texts.package,
    )


def random_workload(vocab_size: int, count: int, length: int, seed: int) -> Workload:
    """Return ``count`` prompts of ``length`` uniformly random tokens.

    The same seed gives the same prompts.
    """
    draw = random.Random(seed)
    prompts = tuple(tuple(draw.randrange(vocab_size) for _ in range(length)) for _ in range(count))
    return Workload(f"random tokens, seed {seed}", prompts, one_wave=True)
