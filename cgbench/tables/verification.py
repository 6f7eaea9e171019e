"""Show what was predicted beside what was measured again, as tables."""

from collections.abc import Sequence

from cgbench.advice.bounded import Bounded
from cgbench.advice.verification import Again
from cgbench.tables.part import Part


def cells_part(found: Sequence[Again]) -> Part:
    """Return a table of the times of cells, in milliseconds."""
    return Part(
        "Measured again",
        (
            *("context [tok]", "batch [req]", "k", "predicted [ms]", "interval"),
            *("measured [ms]", "interval ", "verdict"),
        ),
        tuple((*map(str, each.at), *_both(each, 1e3)) for each in found),
        ("verdict",),
    )


def gains_part(found: Sequence[Again]) -> Part:
    """Return a table of tokens a second over those of a fixed k."""
    return Part(
        "Gains measured again",
        ("context [tok]", "over k", "predicted", "interval", "measured", "interval ", "verdict"),
        tuple(
            (str(each.at.context_len), str(each.at.spec_tokens), *_both(each, 1)) for each in found
        ),
        ("verdict",),
    )


def _both(each: Again, scale: float) -> tuple[str, ...]:
    verdict = "agrees" if each.agrees else "differs"
    return (*_shown(each.predicted, scale), *_shown(each.measured, scale), verdict)


def _shown(found: Bounded, scale: float) -> tuple[str, str]:
    if not found.is_known:
        return f"{scale * found.value:.3f}", "unknown"
    return f"{scale * found.value:.3f}", f"{scale * found.low:.3f} to {scale * found.high:.3f}"
