"""Describe draft lengths that depend on the batch size, in the three forms that engines read.

These are vLLM's ranges, TensorRT-LLM's thresholds, and SGLang's sets of lengths to choose from.
Each becomes tiers: neighbouring batch sizes that draft alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TypeGuard

from cgbench.errors import BadInputError
from cgbench.planning.plan_request import MAX_BATCH_SIZE, MAX_PLANNED_SPEC_TOKENS

ADAPTIVE: dict[int, tuple[int, ...]] = {1: (1, 3, 5, 7), 8: (0, 1, 3), 32: (0, 1), 64: (0,)}
"""SGLang uses these adaptive sets if it is given no file. Each key is the first batch size of a
tier, and its value holds the draft lengths to choose from."""


@dataclass(frozen=True, slots=True)
class Tier:
    """A ``Tier`` holds the draft lengths, ascending, that batch sizes ``first``..``last``
    may run.
    """

    first: int
    last: int
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DraftSchedule:
    """A ``DraftSchedule`` gives every batch size of 1..max_batch_size its draft lengths, as tiers.

    Tiers ascend without a gap. ``longest`` is the most drafts that the engine is configured for,
    and no tier needs to reach it. ``first_length`` is the draft length that an adaptive engine
    begins with. It is None for an engine that does not adapt.
    """

    tiers: tuple[Tier, ...]
    longest: int = 0
    first_length: int | None = None

    def __post_init__(self) -> None:
        assert self.tiers and self.tiers[0].first == 1
        assert all(left.last + 1 == right.first for left, right in pairwise(self.tiers))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return every draft length of any tier, ascending."""
        return tuple(sorted({length for tier in self.tiers for length in tier.lengths}))

    def at(self, batch_size: int) -> tuple[int, ...]:
        """Return the draft lengths that ``batch_size`` requests may run."""
        last = self.tiers[-1]
        return next((t.lengths for t in self.tiers if batch_size <= t.last), last.lengths)

    def widest(self, length: int) -> int:
        """Return the largest batch size that may run this draft length."""
        return max(tier.last for tier in self.tiers if length in tier.lengths)


def from_ranges(label: str, value: object, max_batch_size: int, most: int) -> DraftSchedule:
    """Read vLLM's ``num_speculative_tokens_per_batch_size``, which is [[first, last, k], ..].

    A gap goes on with the length before it, and so do the batch sizes above the last range. No
    length is above ``most``, which is num_speculative_tokens. Raise ``BadInputError``, beginning
    with ``label``, for ranges that the engine would not read.
    """
    if not (isinstance(value, list) and value and all(_is_range(entry) for entry in value)):
        raise BadInputError(f"{label}: must be [[first, last, k], ..], such as [[1, 8, 3]]")
    ranges = sorted((int(first), int(last), int(k)) for first, last, k in value)
    if ranges[0][0] != 1:
        raise BadInputError(f"{label}: the first range must start at batch size 1")
    for (_, last, _), (first, _, _) in pairwise(ranges):
        if first <= last:
            raise BadInputError(f"{label}: batch size {first} is in two ranges")
    starts = [(first, (_checked(label, min(k, most)),)) for first, _, k in ranges]
    return replace(_between(starts, max_batch_size), longest=most)


def from_thresholds(
    label: str, value: object, max_batch_size: int, most: int | None = None
) -> DraftSchedule:
    """Read TensorRT-LLM's ``draft_len_schedule``, which is {largest batch size: k}.

    Batches above the last threshold do not draft. ``most`` is max_draft_len, if it is given. The
    engine wants the smallest batch size to draft that many, and none to draft more
    (``DecodingBaseConfig.validate_draft_len_schedule_and_sort``). Raise ``BadInputError``,
    beginning with ``label``, for any other value.
    """
    if not (isinstance(value, Mapping) and value):
        raise BadInputError(f"{label}: must be batch sizes and draft lengths, such as {{4: 3}}")
    ends = sorted((_whole(label, size, 1), _checked(label, k)) for size, k in value.items())
    if most is not None and (ends[0][1] != most or max(k for _, k in ends) > most):
        raise BadInputError(
            f"{label}: the engine refuses it. The smallest batch size, {ends[0][0]}, must draft "
            f"max_draft_len {most}, and none may draft more"
        )
    firsts = [1, *(end + 1 for end, _ in ends)]
    lengths = [*((k,) for _, k in ends), (0,)]
    return _between([*zip(firsts, lengths, strict=True)], max_batch_size)


def from_sets(
    label: str, value: object, max_batch_size: int, first_length: int | None = None
) -> DraftSchedule:
    """Read SGLang's adaptive sets, which are {first batch size: {"candidate_steps": [k, ..]}}.

    Keys that are no batch size are ignored, because they tune how the engine adapts.
    ``first_length`` is --speculative-num-steps. Without it the engine begins in the middle of all
    lengths. Raise ``BadInputError`` for a value that is no such object, or a ``first_length`` that
    is in no set.
    """
    if not isinstance(value, Mapping):
        raise BadInputError(f"{label}: must be a JSON object")
    entries = {key: entry for key, entry in value.items() if str(key).isdecimal()}
    if not entries:
        raise BadInputError(f'{label}: must have a batch size, such as {{"1": ..}}')
    starts = [
        (_whole(label, key, 1), _steps(label, entry))
        for key, entry in sorted(entries.items(), key=lambda item: int(item[0]))
    ]
    found = _between([(1, starts[0][1]), *starts[1:]], max_batch_size)
    every = sorted({step for _, steps in starts for step in steps})
    if first_length is not None and first_length not in every:
        raise BadInputError(
            f"--speculative-num-steps {first_length}: must be one of the adaptive lengths "
            f"{', '.join(map(str, every))}"
        )
    middle = every[len(every) // 2]
    return replace(found, first_length=middle if first_length is None else first_length)


def adaptive(max_batch_size: int, first_length: int | None = None) -> DraftSchedule:
    """Return the schedule that SGLang adapts by if no file of sets is given."""
    sets = {str(size): {"candidate_steps": [*steps]} for size, steps in ADAPTIVE.items()}
    return from_sets("--speculative-adaptive", sets, max_batch_size, first_length)


def _between(starts: Sequence[tuple[int, tuple[int, ...]]], max_batch_size: int) -> DraftSchedule:
    """Return tiers from where each begins, with alike neighbours joined."""
    ends = [first - 1 for first, _ in starts[1:]] + [max(max_batch_size, starts[-1][0])]
    tiers = (
        Tier(first, min(end, max_batch_size), lengths)
        for (first, lengths), end in zip(starts, ends, strict=True)
        if first <= max_batch_size
    )
    return DraftSchedule(tuple(_merged(tiers)))


def _merged(tiers: Iterable[Tier]) -> Iterator[Tier]:
    for lengths, group in groupby(tiers, key=lambda tier: tier.lengths):
        alike = list(group)
        yield Tier(alike[0].first, alike[-1].last, lengths)


def _is_range(entry: object) -> TypeGuard[list[int]]:
    if not (isinstance(entry, list | tuple) and len(entry) == 3):
        return False
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in entry):
        return False
    first, last, k = entry
    return bool(0 < first <= last <= 10 * MAX_BATCH_SIZE and k >= 0)


def _steps(label: str, entry: object) -> tuple[int, ...]:
    steps = entry.get("candidate_steps") if isinstance(entry, Mapping) else None
    if not (isinstance(steps, list) and steps):
        raise BadInputError(f"{label}: candidate_steps must be a list of draft lengths")
    return tuple(sorted({_checked(label, step) for step in steps}))


def _checked(label: str, value: object) -> int:
    length = _whole(label, value, 0)
    if length > MAX_PLANNED_SPEC_TOKENS:
        raise BadInputError(
            f"{label}: draft length {length} must be at most {MAX_PLANNED_SPEC_TOKENS}"
        )
    return length


def _whole(label: str, value: object, least: int) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or int(text) < least:
        raise BadInputError(f"{label}: {text[:40]} must be a whole number of at least {least}")
    return int(text)
