"""Choose the requests that straddle one edge: how many, how long, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

from cgbench.endpoint.edges import Edge

SHORTEST, LONGEST = 48, 320
"""Characters of a prompt. Lengths between them are ragged, so that no two rows are alike."""

STAGGER = 0.15
"""Arrivals are spread over this share of the time that one request decodes alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row is one request of a probe. ``delay_s`` counts from the probe's start."""

    prompt: int
    max_tokens: int
    delay_s: float


def prompts_of(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """Cut ``count`` different prompts of ragged lengths from ``texts``."""
    joined = [" ".join(text.split()) for text in texts]
    whole = " ".join(each for each in joined if each) or "The"
    while len(whole) < LONGEST * 2:
        whole = f"{whole} {whole}"
    step = max((len(whole) - LONGEST) // max(count, 1), 1)
    span = LONGEST - SHORTEST
    lengths = [SHORTEST + (index * 97 + 31) % span for index in range(count)]
    starts = [(index * step) % (len(whole) - LONGEST) for index in range(count)]
    return tuple(
        whole[start : start + length].strip() or "The"
        for start, length in zip(starts, lengths, strict=True)
    )


def ragged(row: int, max_tokens: int) -> int:
    """Return how many tokens a row asks for: three quarters of ``max_tokens`` to all of it."""
    return max(max_tokens - (row * 5 + 3) % (max_tokens // 4 + 1), 1)


def rows_of(
    edge: Edge,
    num_prompts: int,
    max_tokens: int,
    alone_s: float,
    *,
    turn: int = 0,
    at_once: bool = False,
) -> tuple[Row, ...]:
    """Return the requests that straddle ``edge``.

    All but one arrive in turn and decode long. The last one arrives when they decode and ends
    first. So the batch climbs over the edge, stays above it, falls below it and stays there.
    ``alone_s`` is what one request takes to decode alone. Another ``turn`` sends the prompts that
    follow. ``at_once``: without any stagger.
    """
    count = edge.peak
    shift = edge.batch_size + turn * count
    spread = 0.0 if at_once else STAGGER * alone_s
    rows = [
        Row(
            (row + shift) % num_prompts,
            ragged(row + shift, max_tokens),
            spread * row / max(count - 1, 1),
        )
        for row in range(count - 1)
    ]
    last = Row((count - 1 + shift) % num_prompts, max(max_tokens // 2, 1), spread * 1.25)
    return (*rows, last)
