"""A graph's cost is the time and memory that its capture took. No torch here."""

from dataclasses import dataclass

from cgbench.words import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """A graph cost is what one captured graph took, in seconds and bytes: a row of
    ``capture.csv``."""

    phase: Phase
    spec_tokens: int
    bucket: int
    num_tokens: int
    warmup_s: float
    capture_s: float
    instantiate_s: float
    first_replay_s: float
    pool_bytes: int
    driver_bytes: int
    nodes: int | None
