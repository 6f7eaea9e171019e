"""Acceptance rates from the drafts that each iteration kept."""

from collections.abc import Sequence
from typing import Any

from cgbench.engine.acceptance_counts import accepted_per_pos


def summary(accepted: Sequence[int], spec_tokens: int) -> dict[str, Any]:
    """Rates from the drafts accepted by each iteration."""
    count = max(1, len(accepted))
    rates = [kept / count for kept in accepted_per_pos(accepted, spec_tokens)]
    return {
        "iterations": len(accepted),
        "acceptance_rate_per_pos": [round(rate, 3) for rate in rates],
        "mean_acceptance_length": round(1 + sum(rates), 3),
    }
