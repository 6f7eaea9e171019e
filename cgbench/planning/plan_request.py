"""What a caller asks of the planner."""

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

from cgbench.errors import PlanError

if TYPE_CHECKING:
    from cgbench.planning.concurrency import Concurrency
    from cgbench.planning.costs import Costs
    from cgbench.planning.draft_schedule import DraftSchedule


class CaptureUnit(StrEnum):
    """What sizes to capture count."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class CaptureMode(StrEnum):
    """Which graphs there are: whole ones for decode and pieces for mixed batches, the first or the
    second alone, or none."""

    FULL = "full"
    DECODE_ONLY = "decode only"
    PIECES = "pieces"
    NONE = "none"


class Drafting(StrEnum):
    """How drafts come about: a step each, all in one forward, a step each of a model that the
    engine captures no graph of, or looked up in the text."""

    CHAIN = "chain"
    PARALLEL = "parallel"
    WITHOUT_GRAPHS = "without graphs"
    WITHOUT_MODEL = "without a model"


MAX_SPEC_TOKENS = 8
"""Verify reads query_len = 9 positions at k = 8, the widest the attention kernels are built for."""

MAX_PLANNED_SPEC_TOKENS = 32
"""A plan needs no kernel. Drafters in use reach 15 to 24 drafts (DFlash, suffix decoding)."""

MAX_BATCH_SIZE = 65_536
"""Requests, a hundred times what engines run at once. A plan goes through every batch size, and
holds each in memory: up to half a GB for this many."""

DEFAULT_MAX_BATCHED_TOKENS = 8192
"""vLLM's default for serving on data-centre GPUs, TensorRT-LLM's max_num_tokens, and ours."""


def check_batch_size(flag: str, batch_size: int) -> None:
    """Raises ``PlanError`` where so many requests are none, or too many to plan for."""
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise PlanError(f"{flag} {batch_size}: must be 1 to {MAX_BATCH_SIZE}")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Everything a capture policy may look at; hashable, so that equal requests mean equal plans.

    ``spec_tokens`` is k; each request verifies query_len = k + 1 positions an iteration.
    ``max_batch_size`` is the most requests that decode together (engines: max_num_seqs).
    ``capture_sizes`` are explicit sizes, in ``capture_unit``, for the policy ``explicit`` alone.

    Then what only some policies read: ``max_num_batched_tokens``, the most tokens in one forward;
    ``blackwell``, a data-centre Blackwell GPU; ``pad``, off where the engine's graph padding is
    switched off; ``tp_size``, for divisibility rules. The next five are for ``optimal``: the
    workload (None: every batch size alike), its costs (None: tokens), and the budget.

    The last are what a user gave the engine: ``graph_sizes``, a list in the engine's own unit, and
    ``graph_maximum``, a ceiling in that unit. Both go through the engine's rule. ``interactivity``
    is vLLM's performance mode, ``module_per_draft`` SGLang's multi-layer mode. ``capture_mode``
    is which graphs there are at all, ``drafting`` whether a draft model runs k steps, one, or none.
    ``schedule`` is the deployment's draft
    lengths by batch size, because vLLM's own list depends on all of them.

    Raises ``PlanError`` where a value can serve no policy.
    """

    spec_tokens: int
    max_batch_size: int
    policy: str = "scaled"
    capture_sizes: tuple[int, ...] = ()
    capture_unit: CaptureUnit = CaptureUnit.REQUESTS
    _: KW_ONLY
    max_num_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    blackwell: bool = False
    pad: bool = True
    tp_size: int = 1
    concurrency: "Concurrency | None" = None
    costs: "Costs | None" = None
    max_graphs: int | None = None
    max_memory_bytes: int | None = None
    max_capture_s: float | None = None
    graph_sizes: tuple[int, ...] = ()
    graph_maximum: int | None = None
    interactivity: bool = False
    module_per_draft: bool = False
    capture_mode: CaptureMode = CaptureMode.FULL
    drafting: Drafting = Drafting.CHAIN
    schedule: "DraftSchedule | None" = None

    def __post_init__(self) -> None:
        if not 0 <= self.spec_tokens <= MAX_PLANNED_SPEC_TOKENS:
            raise PlanError(
                f"--spec-tokens {self.spec_tokens}: must be 0 to {MAX_PLANNED_SPEC_TOKENS}"
            )
        check_batch_size("--max-num-seqs", self.max_batch_size)
        for flag, value in self._at_least_one():
            if value is not None and not value >= 1:
                raise PlanError(f"{flag} {value}: must be at least 1")
        if self.max_capture_s is not None and not 0 < self.max_capture_s < inf:
            raise PlanError(f"--max-capture-seconds {self.max_capture_s}: must be above 0")
        if self.capture_sizes and self.policy != "explicit":
            raise PlanError(
                f"--capture-sizes goes with --policy explicit, not with --policy {self.policy}"
            )
        if self.capture_unit != CaptureUnit.REQUESTS and not self.capture_sizes:
            raise PlanError(f"--capture-unit {self.capture_unit}: give --capture-sizes too")

    def _at_least_one(self) -> tuple[tuple[str, int | None], ...]:
        return (
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
            ("--tp", self.tp_size),
            ("--max-graphs", self.max_graphs),
            ("--max-memory", self.max_memory_bytes),
            ("the engine's graph maximum", self.graph_maximum),
            ("the engine's graph sizes:", min(self.graph_sizes, default=None)),
        )

    @property
    def query_len(self) -> int:
        """Positions verified per request: the newest token and k drafts."""
        return self.spec_tokens + 1
