"""What a caller asks of the planner."""

from dataclasses import dataclass
from typing import Literal

from cgbench.errors import PlanError

CaptureUnit = Literal["requests", "tokens"]

MAX_SPEC_TOKENS = 8
"""Verify reads query_len = 9 positions at k = 8, the widest the attention kernels are built for."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Everything a capture policy may look at.

    ``spec_tokens`` is k; each request verifies query_len = k + 1 positions an iteration.
    ``max_batch_size`` is the most requests that decode together (engines: max_num_seqs).
    ``capture_sizes`` are explicit sizes, in ``capture_unit``, for the policy ``explicit`` alone.

    Raises ``PlanError`` where a value can serve no policy.
    """

    spec_tokens: int
    max_batch_size: int
    policy: str = "scaled"
    capture_sizes: tuple[int, ...] = ()
    capture_unit: CaptureUnit = "requests"

    def __post_init__(self) -> None:
        if not 0 <= self.spec_tokens <= MAX_SPEC_TOKENS:
            raise PlanError(f"--spec-tokens {self.spec_tokens}: must be 0 to {MAX_SPEC_TOKENS}")
        if self.max_batch_size < 1:
            raise PlanError(f"--max-num-seqs {self.max_batch_size}: must be at least 1")
        if self.capture_sizes and self.policy != "explicit":
            raise PlanError(
                f"--capture-sizes goes with --policy explicit, not with --policy {self.policy}"
            )

    @property
    def query_len(self) -> int:
        """Positions verified per request: the newest token and k drafts."""
        return self.spec_tokens + 1
