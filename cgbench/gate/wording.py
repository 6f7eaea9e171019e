"""A comparison's lines in words: the table and the CI formats share them."""

from cgbench.gate.comparison import Comparison
from cgbench.gate.verdicts import Line

SHA256_DIGITS = 64


def has_interval(line: Line) -> bool:
    """Whether both ends are finite, and there is something between them."""
    return line.low is not None and line.high is not None and line.low < line.high


def change(line: Line, value: float | None) -> str:
    """``+3.00 %``; ``points`` where it is the difference of two rates."""
    if value is None:
        return ""
    return f"{100 * value:+.2f} {'points' if line.is_rate else '%'}"


def evidence(line: Line) -> str:
    """One line's evidence in words: reason, values, change, interval, what it rests on."""
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
    """What a line is about: ``iteration latency, scope phase, k 3, batch 8``."""
    parts = [line.what, f"scope {line.scope}" if line.scope else "", line.place]
    parts += ["" if line.spec_tokens is None else f"k {line.spec_tokens}"]
    parts += ["" if line.batch_size is None else f"batch {line.batch_size}"]
    return ", ".join(filter(None, parts))


def summary(comparison: Comparison) -> str:
    """The outcome in one line."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in comparison.counts.items())
    gated = counts or "nothing is gated: --gate ...,eager gates eager cells too"
    return f"{gated}; exit code {int(comparison.exit_code)}"


def value_text(value: float | str | None) -> str:
    """Five digits, and whole numbers whole; of a hash its beginning."""
    if isinstance(value, str) and len(value) == SHA256_DIGITS:
        return value[:12]
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.0f}"
    return "" if value is None else str(value)
