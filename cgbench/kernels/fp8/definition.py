"""Switch products of FP8 weights to their definition, so that an audit can check kernels against
it."""

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


@contextmanager
def by_definition() -> Iterator[None]:
    """Make products of FP8 weights float32 sums of float32 values inside the context.

    That holds on every device. It is slow, because each product makes the values anew.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def is_by_definition() -> bool:
    """Return whether the caller is inside ``by_definition``."""
    return _depth > 0
