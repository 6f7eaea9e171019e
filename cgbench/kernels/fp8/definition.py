"""Products of FP8 weights by their definition, kernels or none: what an audit holds kernels to."""

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


@contextmanager
def by_definition() -> Iterator[None]:
    """Products of FP8 weights are float32 sums of float32 values meanwhile, on every device. Slow:
    each makes the values anew."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def is_by_definition() -> bool:
    """Whether that is asked for now."""
    return _depth > 0
