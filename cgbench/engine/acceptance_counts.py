"""Count acceptance per position, up to where a request begins to repeat itself."""

from collections.abc import Sequence

NGRAM = 8


def accepted_per_pos(accepted: Sequence[int], spec_tokens: int) -> tuple[int, ...]:
    """Count the iterations that kept draft 1, 2, .. k.

    The counts are unconditional, so they never rise from one draft to the next.
    """
    return tuple(sum(a > position for a in accepted) for position in range(spec_tokens))


def before_repeat(token_ids: Sequence[int], accepted: Sequence[int]) -> list[int]:
    """Return the drafts kept by the iterations before the request's first repeated 8-gram.

    ``token_ids`` are a request's output, its prefill's token first. ``accepted`` are the drafts
    that each iteration kept. A model that loops is easy to draft for, so later iterations show no
    skill.
    """
    end = _first_repeat(token_ids)
    kept: list[int] = []
    position = 1
    for count in accepted:
        if position >= end:
            break
        kept.append(count)
        position += count + 1
    return kept


def _first_repeat(token_ids: Sequence[int]) -> int:
    """Return where the first 8-gram that occurred before begins, or the length if none repeats."""
    seen: set[tuple[int, ...]] = set()
    for end in range(NGRAM, len(token_ids) + 1):
        ngram = tuple(token_ids[end - NGRAM : end])
        if ngram in seen:
            return end - NGRAM
        seen.add(ngram)
    return len(token_ids)
