"""Judge whether the floors of a run hold: none may be beaten by more than its uncertainty."""

from collections.abc import Iterator

import pandas as pd

from cgbench.rundir.record import RunRecord
from cgbench.rundir.schema import COLD
from cgbench.words import Status

MEASURED = (Status.OK.value, Status.DISTURBED.value)


def with_floor_verdicts(latency: pd.DataFrame, record: RunRecord) -> pd.DataFrame:
    """Return ``latency`` with every share of the floor at most 1.

    A row is beaten if it is faster than its floor by more than its interval and the bandwidth's own
    spread. It gets status ``floor_beaten`` and no share, because its floor is wrong. Within that
    its share is 1.

    If the weights fit the device's cache, the floor bounds nothing, because it reads them from
    memory. A row that is faster than its floor then has no share either.
    """
    share = _share(latency)
    is_over = share > 1
    if not is_over.any():
        return latency
    if _fits_cache(latency, record):
        return latency.assign(floor_frac=share.mask(is_over))
    spread = record.limits.read_spread_frac if record.limits else 0.0
    allowed = 1 + latency["half_width_frac"].fillna(0.0) + spread
    is_beaten = (share > allowed) & latency["status"].isin(MEASURED)
    return latency.assign(
        floor_frac=share.clip(upper=1.0).mask(is_beaten),
        status=latency["status"].mask(is_beaten, Status.FLOOR_BEATEN.value),
    )


def floor_lines(latency: pd.DataFrame, record: RunRecord) -> Iterator[str]:
    """Yield a line for each row whose floor is beaten, or one line if the weights fit the cache."""
    share = _share(latency)
    beaten = latency.assign(share=share)[latency["status"] == Status.FLOOR_BEATEN.value]
    for row in beaten.to_dict("records"):
        yield (
            f"floor beaten: {row['scope']} k={row['spec_tokens']}, batch size {row['batch_size']} "
            f"runs at {row['share']:.1%} of its floor. The floor is wrong: please report it"
        )
    if (share > 1).any() and _fits_cache(latency, record):
        yield (
            f"the weights, {record.model['weight_bytes']:,} bytes, fit the device's cache, "
            f"{_cache_bytes(record):,} bytes: rows that are faster than a read from "
            "memory have no share of the floor"
        )


def _share(latency: pd.DataFrame) -> "pd.Series[float]":
    """Return the share of the floor, as measured. It is over 1 if the floor is beaten."""
    return latency["floor_ms"] / latency["iteration_p50_ms"]


def _cache_bytes(record: RunRecord) -> int:
    """Return the bytes of the device's cache, or 0 if they are unknown."""
    limits = record.limits
    return 0 if limits is None else limits.cache_bytes or 0


def _fits_cache(latency: pd.DataFrame, record: RunRecord) -> bool:
    """Return whether the weights may stay in the cache from one iteration to the next."""
    cache, weights = _cache_bytes(record), record.model.get("weight_bytes")
    is_flushed = (latency["l2"] == COLD).any()
    return bool(cache and weights and weights <= cache and not is_flushed)
