"""Define a plan, the planner's answer: the buckets to capture and what they leave uncovered."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Bucket:
    """A ``Bucket`` is one captured batch size, in requests and in tokens.

    ``num_tokens == batch_size * query_len``, always.
    """

    batch_size: int
    num_tokens: int

    def padding_frac(self, batch_size: int) -> float:
        """Return the empty share of the bucket's rows with ``batch_size`` requests, 0 to
        below 1.
        """
        return (self.batch_size - batch_size) / self.batch_size


@dataclass(frozen=True, slots=True)
class Span:
    """A ``Span`` is a stretch of batch sizes ``first``..``last`` that share ``bucket``, or run
    eager.
    """

    first: int
    last: int
    bucket: Bucket | None


class Coverage:
    """A ``Coverage`` maps each batch size of 1..max_batch_size to its bucket, or to none.

    ``pads`` is false if the engine replays a graph at its own batch size alone.
    """

    buckets: tuple[Bucket, ...]
    max_batch_size: int
    pads: bool

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """Return the batch sizes, in requests and ascending, that have a decode graph."""
        return tuple(bucket.batch_size for bucket in self.buckets)

    @property
    def eager_above(self) -> int:
        """Return the largest captured batch size, above which everything runs eager.

        0 means no graph.
        """
        return self.batch_sizes[-1] if self.buckets else 0

    def bucket_for(self, batch_size: int) -> Bucket | None:
        """Return the bucket that runs ``batch_size`` requests, or None if they run eager.

        It is the smallest bucket that holds them. In a plan that does not pad, it is the bucket of
        just that size.
        """
        index = bisect_left(self.batch_sizes, batch_size)
        bucket = self.buckets[index] if index < len(self.buckets) else None
        return bucket if bucket and (self.pads or bucket.batch_size == batch_size) else None

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Return 1..max_batch_size in pieces, cut wherever another graph, or none, takes over."""
        return tuple(self._spans())

    def _spans(self) -> Iterator[Span]:
        """Yield spans from bucket to bucket.

        Each bucket serves what the one below does not hold.
        """
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
        """Return the holes: spans of batch sizes up to max_batch_size that have no graph."""
        return tuple(span for span in self.spans if span.bucket is None)

    @property
    def eager_batch_sizes(self) -> int:
        """Return how many of the batch sizes 1..max_batch_size have no graph."""
        return sum(span.last - span.first + 1 for span in self.eager_spans)

    @property
    def mean_padding(self) -> float:
        """Return the mean padding_frac over the batch sizes that have a graph, or 0 if none has."""
        shares = [
            span.bucket.padding_frac(size)
            for span in self.spans
            if span.bucket
            for size in range(span.first, span.last + 1)
        ]
        return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True)
class CapturePlan(Coverage):
    """A ``CapturePlan`` holds the decode graphs that a policy captures for one k.

    ``buckets`` ascend in batch size. ``capture_tokens`` is the engine's own list in tokens, in its
    order and with its sizes. ``indivisible`` are the sizes among them that k + 1 does not divide.
    ``warnings`` are sentences on what the policy gets wrong. ``pads`` is false if the engine
    replays a graph at its own batch size alone.
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
        """Return the positions verified per request, k + 1."""
        return self.spec_tokens + 1
