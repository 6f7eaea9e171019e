"""The planner's answer: the buckets to capture and what they leave uncovered."""

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Bucket:
    """One captured batch size. ``num_tokens == batch_size * query_len``, always."""

    batch_size: int
    num_tokens: int

    def padding_frac(self, batch_size: int) -> float:
        """Share of the bucket's rows that ``batch_size`` requests leave empty, 0 to below 1."""
        return (self.batch_size - batch_size) / self.batch_size


@dataclass(frozen=True)
class CapturePlan:
    """Decode graphs for one k.

    ``buckets`` ascend in batch size. ``capture_tokens`` is the list in tokens, in the order and
    with the sizes that the engine itself would state, ``indivisible`` those of them that k + 1
    does not divide. ``warnings`` say in words what the policy gets wrong.
    """

    policy: str
    spec_tokens: int
    max_batch_size: int
    buckets: tuple[Bucket, ...]
    capture_tokens: tuple[int, ...]
    indivisible: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        assert all(size >= 1 for size in sizes)
        assert all(small < large for small, large in pairwise(sizes))
        assert all(b.num_tokens == b.batch_size * self.query_len for b in self.buckets)

    @property
    def query_len(self) -> int:
        """Positions verified per request: k + 1."""
        return self.spec_tokens + 1

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """Requests, ascending: the batch sizes that have a decode graph of their own."""
        return tuple(bucket.batch_size for bucket in self.buckets)

    @property
    def eager_above(self) -> int:
        """The largest captured batch size; more requests than this run eager. 0: none captured."""
        return self.batch_sizes[-1] if self.buckets else 0

    def bucket_for(self, batch_size: int) -> Bucket | None:
        """The smallest bucket that holds ``batch_size`` requests, or None: it runs eager."""
        index = bisect_left(self.batch_sizes, batch_size)
        return self.buckets[index] if index < len(self.buckets) else None

    @property
    def eager_batch_sizes(self) -> int:
        """How many of the batch sizes 1..max_batch_size have no graph."""
        return max(0, self.max_batch_size - self.eager_above)

    @property
    def mean_padding(self) -> float:
        """Mean padding_frac over those of 1..max_batch_size that have a graph; 0 where none has."""
        covered = range(1, min(self.max_batch_size, self.eager_above) + 1)
        shares = [
            bucket.padding_frac(size)
            for size in covered
            if (bucket := self.bucket_for(size)) is not None
        ]
        return sum(shares) / len(shares) if shares else 0.0
