"""Put a comparison's lines in words, which the table and the CI formats share."""

from cgbench.gate.comparison import Comparison
from cgbench.gate.verdicts import Line

SHA256_DIGITS = 64


def has_interval(line: Line) -> bool:
    """Return whether both ends are finite, and there is something between them."""
    return line.low is not None and line.high is not None and line.low < line.high


def change(line: Line, value: float | None) -> str:
    """Return a change such as ``+3.00 %``. The difference of two rates has ``points`` for ``%``."""
    if value is None:
        return ""
    return f"{100 * value:+.2f} {'points' if line.is_rate else '%'}"


def evidence(line: Line) -> str:
    """Return one line's evidence in words: its reason, values, change and interval, and what it
    rests on.
    """
    unit = f" {line.unit}" if line.unit else ""
    parts = [line.reason]
    if line.base is not None or line.new is not None:
        parts.append(f"{value_text(line.base)} -> {value_text(line.new)}{unit}")
    if line.effect is not None:
        parts.append(change(line, line.effect))
    if has_interval(line):
        parts.append(f"interval {change(line, line.low)} to {change(line, line.high)}")
    if line.base_blocks is not None:
        parts.append(f"{line.base_blocks} and {line.new_blocks} observations")
    return "; ".join(filter(None, parts))


def subject(line: Line) -> str:
    """Return what a line is about, as in ``iteration latency, scope phase, k 3, batch 8``."""
    parts = [line.what, f"scope {line.scope}" if line.scope else "", line.place]
    parts += ["" if line.spec_tokens is None else f"k {line.spec_tokens}"]
    parts += ["" if line.batch_size is None else f"batch {line.batch_size}"]
    return ", ".join(filter(None, parts))


def summary(comparison: Comparison) -> str:
    """Return the outcome in one line."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in comparison.counts.items())
    gated = counts or "nothing is gated"
    return f"{gated}, exit code {int(comparison.exit_code)}"


def value_text(value: float | str | None) -> str:
    """Return a value with five digits, or whole if it is a whole number. A hash is cut to its
    beginning.
    """
    if isinstance(value, str) and len(value) == SHA256_DIGITS:
        return value[:12]
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    return "" if value is None else str(value)
