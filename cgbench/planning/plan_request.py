"""Define what a caller asks of the planner, and the limits of what can be planned."""

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
    """A ``CaptureUnit`` states whether sizes to capture count requests or tokens."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class CaptureMode(StrEnum):
    """A ``CaptureMode`` states which graphs there are.

    FULL means whole graphs for decode and pieces for mixed batches. DECODE_ONLY and PIECES are the
    first or the second alone. NONE means no graphs.
    """

    FULL = "full"
    DECODE_ONLY = "decode only"
    PIECES = "pieces"
    NONE = "none"


class Drafting(StrEnum):
    """A ``Drafting`` states how drafts come about.

    CHAIN makes them a step each, and PARALLEL all in one forward. WITHOUT_GRAPHS is a step each of
    a model that the engine captures no graph of. WITHOUT_MODEL looks them up in the text.
    """

    CHAIN = "chain"
    PARALLEL = "parallel"
    WITHOUT_GRAPHS = "without graphs"
    WITHOUT_MODEL = "without a model"


MAX_SPEC_TOKENS = 16
"""Runs draft at most this many tokens. At k = 16 verify reads query_len = 17 positions, the widest
that the attention kernels are tested for."""

MAX_PLANNED_SPEC_TOKENS = 32
"""Plans take a larger k than runs, because a plan needs no kernel. Drafters in use reach 15 to 24
drafts (DFlash, suffix decoding)."""

MAX_BATCH_SIZE = 65_536
"""Plans hold at most this many requests, a hundred times what engines run at once. A plan goes
through every batch size and holds each in memory. That is up to half a GB for this many."""

DEFAULT_MAX_BATCHED_TOKENS = 8192
"""This is the default token budget of a forward here and in TensorRT-LLM (max_num_tokens). It is
vLLM's too for serving on data-centre GPUs such as the H100."""


def check_batch_size(flag: str, batch_size: int) -> None:
    """Check that this batch size can be planned for.

    Raise ``PlanError`` if it is not 1 to 65,536.
    """
    if not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise PlanError(f"{flag} {batch_size}: must be 1 to {MAX_BATCH_SIZE}")


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A ``PlanRequest`` holds everything that a capture policy may look at.

    It is hashable, so that equal requests mean equal plans. ``spec_tokens`` is k. Each request
    verifies query_len = k + 1 positions an iteration. ``max_batch_size`` is the most requests that
    decode together (engines: max_num_seqs). ``capture_sizes`` are explicit sizes, in
    ``capture_unit``, for the policy ``explicit`` alone.

    Only some policies read the next fields. ``max_num_batched_tokens`` is the most tokens in one
    forward. ``blackwell`` marks a data-centre Blackwell GPU. ``pad`` is off if the engine's graph
    padding is switched off. ``tp_size`` is for divisibility rules. The next five are for
    ``optimal``. ``concurrency`` is the workload (None: every batch size alike) and ``costs`` its
    costs (None: tokens). The other three are the budget.

    The last fields are what a user gave the engine. ``graph_sizes`` is a list in the engine's own
    unit, and ``graph_maximum`` is a ceiling in that unit. Both go through the engine's rule.
    ``interactivity`` is vLLM's performance mode, and ``module_per_draft`` is SGLang's multi-layer
    mode. ``tree_width`` is how many tokens a request runs in each later draft step: SGLang's top-k.
    ``capture_mode`` and ``drafting`` state which graphs there are and how drafts come about.
    ``schedule`` holds the deployment's draft lengths by batch size, because vLLM's own list depends
    on all of them.

    Raise ``PlanError`` if a value can serve no policy.
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
    tree_width: int = 1
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
        """Return the positions verified per request: the newest token and k drafts."""
        return self.spec_tokens + 1
