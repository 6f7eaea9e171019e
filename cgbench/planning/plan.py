"""The planner's answer: the buckets to capture and what they leave uncovered."""

from bisect import bisect_left
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring batch sizes ``first``..``last`` that run alike: in ``bucket``, or eager."""

    first: int
    last: int
    bucket: Bucket | None


class Coverage:
    """Which bucket serves each batch size of 1..max_batch_size, and which have none.

    ``pads`` is false where the engine replays a graph at its own batch size alone.
    """

    buckets: tuple[Bucket, ...]
    max_batch_size: int
    pads: bool

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """Requests, ascending: the batch sizes that have a decode graph of their own."""
        return tuple(bucket.batch_size for bucket in self.buckets)

    @property
    def eager_above(self) -> int:
        """The largest captured batch size; more requests than this run eager. 0: none captured."""
        return self.batch_sizes[-1] if self.buckets else 0

    def bucket_for(self, batch_size: int) -> Bucket | None:
        """The bucket that runs ``batch_size`` requests, or None: they run eager.

        The smallest that holds them; where the plan does not pad, the one of just that size.
        """
        index = bisect_left(self.batch_sizes, batch_size)
        bucket = self.buckets[index] if index < len(self.buckets) else None
        return bucket if bucket and (self.pads or bucket.batch_size == batch_size) else None

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """1..max_batch_size, cut wherever another graph, or none, takes over."""
        return tuple(self._spans())

    def _spans(self) -> Iterator[Span]:
        """From bucket to bucket: each serves what the one below does not hold."""
        served, most = 0, self.max_batch_size
        for bucket in self.buckets:
            first, last = served + 1, min(bucket.batch_size, most)
            if not self.pads:
                # A graph serves its own batch size alone. What lies below runs eager.
                below = min(bucket.batch_size - 1, most)
                if first <= below:
                    yield Span(first, below, None)
                first = bucket.batch_size
            if first <= last:
                yield Span(first, last, bucket)
            served = last
        if served < most:
            yield Span(served + 1, most, None)

    @property
    def eager_spans(self) -> tuple[Span, ...]:
        """The holes: batch sizes up to max_batch_size that have no graph."""
        return tuple(span for span in self.spans if span.bucket is None)

    @property
    def eager_batch_sizes(self) -> int:
        """How many of the batch sizes 1..max_batch_size have no graph."""
        return sum(span.last - span.first + 1 for span in self.eager_spans)

    @property
    def mean_padding(self) -> float:
        """Mean padding_frac over those of 1..max_batch_size that have a graph; 0 where none has."""
        shares = [
            span.bucket.padding_frac(size)
            for span in self.spans
            if span.bucket
            for size in range(span.first, span.last + 1)
        ]
        return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class CapturePlan(Coverage):
    """Decode graphs for one k.

    ``buckets`` ascend in batch size. ``capture_tokens`` is the list in tokens, in the order and
    with the sizes that the engine itself would state, ``indivisible`` those of them that k + 1
    does not divide. ``warnings`` say in words what the policy gets wrong. ``pads`` is false where
    the engine replays a graph at its own batch size alone.
    """

    policy: str
    spec_tokens: int
    max_batch_size: int
    buckets: tuple[Bucket, ...]
    capture_tokens: tuple[int, ...]
    indivisible: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    pads: bool = True

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        assert all(size >= 1 for size in sizes)
        assert all(small < large for small, large in pairwise(sizes))
        assert all(b.num_tokens == b.batch_size * self.query_len for b in self.buckets)

    @property
    def query_len(self) -> int:
        """Positions verified per request: k + 1."""
        return self.spec_tokens + 1
