"""Acceptance rates from the drafts that each iteration kept."""

from collections.abc import Sequence
from typing import Any


def summary(accepted: Sequence[int], spec_tokens: int) -> dict[str, Any]:
    """Rates from the drafts accepted by each iteration."""
    count = max(1, len(accepted))
    rates = [sum(a >= position for a in accepted) / count for position in range(1, spec_tokens + 1)]
    return {
        "iterations": len(accepted),
        "acceptance_rate_per_pos": [round(rate, 3) for rate in rates],
        "mean_acceptance_length": round(1 + sum(rates), 3),
    }
