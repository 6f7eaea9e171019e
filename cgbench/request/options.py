"""Hold what one run is asked to do, checked before anything is loaded. No torch here."""

from dataclasses import dataclass

from cgbench.errors import BadInputError
from cgbench.inputs import check_whole
from cgbench.planning import (
    MAX_SPEC_TOKENS,
    CapturePlan,
    CaptureUnit,
    PlanRequest,
    check_batch_size,
    plan,
)
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.planning.policies.registry import reads
from cgbench.planning.study import DEFAULT_MAX_GRAPHS
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.choices import Compile, Role
from cgbench.words import Scope

MIN_REACH_ITERATIONS = 8

MAX_TIME_S = 7 * 24 * 3600
"""Timing a batch size takes at most this many seconds, a week. A run without an end is refused."""

MAX_SEED = 2**32 - 1
"""Every generator takes seeds up to this one: torch's, Python's and NumPy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOptions:
    """A ``DeploymentOptions`` states what a deployment is made for.

    It holds the scopes that it runs, and the largest steps that it serves. With ``role`` decode
    there is no prefill among them.
    """

    scopes: tuple[Scope, ...]
    max_batch_size: int
    max_num_batched_tokens: int
    role: Role
    nvtx: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """A ``RunOptions`` is a request with no default left: ``resolution.resolve`` makes it.

    Lengths are in tokens. ``spec_tokens`` ascends and always holds 0. Raise ``BadInputError``,
    naming the flag, if a value cannot be used.
    """

    spec_tokens: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    scopes: tuple[Scope, ...]
    max_batch_size: int
    policy: str
    capture_sizes: tuple[int, ...]
    capture_unit: CaptureUnit
    role: Role
    max_num_batched_tokens: int
    max_new_tokens: int
    context_len: int
    iterations: int
    acceptance: AcceptanceSetting
    ignore_eos: bool
    seed: int
    precision: float = 0.005
    min_time_s: float = 0.0
    max_time_s: float = 0.0
    cold_l2: bool = False
    compile: Compile = Compile.OFF
    nvtx: bool = False
    tp_size: int = 1

    def __post_init__(self) -> None:
        for k in self.spec_tokens:
            if not 0 <= k <= MAX_SPEC_TOKENS:
                raise BadInputError(f"--spec-tokens {k}: must be 0 to {MAX_SPEC_TOKENS}")
        for name, value in (
            ("--max-new-tokens", self.max_new_tokens),
            ("--context-len", self.context_len),
            ("--iterations", self.iterations),
            ("--max-num-batched-tokens", self.max_num_batched_tokens),
        ):
            check_whole(name, value, 1)
        check_whole("--seed", self.seed, 0, MAX_SEED)
        for size in self.batch_sizes:
            check_batch_size("--batch-sizes", size)
        if not 0 <= self.precision < 1:
            raise BadInputError(f"--precision {self.precision:g}: must be a share, 0 to below 1")
        if not 0 <= self.max_time_s <= MAX_TIME_S:
            raise BadInputError(
                f"--max-time {self.max_time_s:g}: must be 0 to {MAX_TIME_S:,} seconds, a week"
            )
        if not 0 <= self.min_time_s <= self.max_time_s:
            raise BadInputError(
                f"--min-time {self.min_time_s:g}: must be 0 to --max-time, {self.max_time_s:g}"
            )
        if max(self.batch_sizes) > self.max_batch_size:
            raise BadInputError(
                f"--batch-sizes {max(self.batch_sizes)}: over --max-num-seqs {self.max_batch_size}"
            )

    @property
    def deployment(self) -> DeploymentOptions:
        """Return the part that the engine reads, beside the plans."""
        return DeploymentOptions(
            scopes=self.scopes,
            max_batch_size=self.max_batch_size,
            max_num_batched_tokens=self.max_num_batched_tokens,
            role=self.role,
            nvtx=self.nvtx,
        )

    @property
    def max_spec_tokens(self) -> int:
        """Return the largest k of the run."""
        return max(self.spec_tokens)

    @property
    def band(self) -> int:
        """Return the tokens past ``context_len`` that a timed block spans, for every scope and k.

        The band is as many tokens as there are iterations, because k = 0 makes one an iteration.
        """
        return self.iterations

    @property
    def mean_context_len(self) -> float:
        """Return the mean KV rows per request of a timed block, equal at every scope and k.

        It is the middle of the band, which the first timed iteration enters by a token.
        """
        return self.context_len + (self.band + 1) / 2

    @property
    def reach(self) -> int:
        """Return the most tokens that a request decodes past its context.

        In the timed pass a request may be twice as fast as the mean of its batch, because only the
        mean stays in the band. The audit steps a few times with every draft kept.
        """
        query_len = self.max_spec_tokens + 1
        return max(self.max_new_tokens, self._timed_reach, MIN_REACH_ITERATIONS * query_len)

    @property
    def _timed_reach(self) -> int:
        return 2 * (self.band + self.max_spec_tokens + 1)

    @property
    def reach_flags(self) -> tuple[str, ...]:
        """Return the flags that decide ``reach``."""
        by_reach = {self._timed_reach: "--iterations", self.max_new_tokens: "--max-new-tokens"}
        own = by_reach.get(self.reach)
        return ("--spec-tokens",) if own is None else (own, "--spec-tokens")

    @property
    def to_decode(self) -> int:
        """Return the KV rows past the context, in tokens.

        They are the reach, and 2k more that drafts past the last emitted token may write.
        """
        return self.reach + 2 * self.max_spec_tokens

    def plans(self) -> dict[int, CapturePlan]:
        """Return a capture plan for each k. Raise ``PlanError`` if the policy refuses one.

        Explicit sizes are the caller's for speculation. The baseline k = 0 takes the same batch
        sizes, because a size in tokens means another batch size at another k.
        """
        speculating = [k for k in self.spec_tokens if k or not self.max_spec_tokens]
        plans = {k: plan(self._plan_request(k)) for k in speculating}
        if 0 not in plans:
            plans[0] = plan(self._baseline_request(plans))
        return dict(sorted(plans.items()))

    def _plan_request(self, k: int) -> PlanRequest:
        return PlanRequest(
            spec_tokens=k,
            max_batch_size=self.max_batch_size,
            policy=self.policy,
            capture_sizes=self.capture_sizes,
            capture_unit=self.capture_unit,
            max_num_batched_tokens=self._token_budget(),
            tp_size=self.tp_size if reads(self.policy, "tp_size") else 1,
            max_graphs=DEFAULT_MAX_GRAPHS if self.policy == "optimal" else None,
        )

    def _token_budget(self) -> int:
        """Return the prefill budget if the engine's list depends on it, and else the default."""
        if reads(self.policy, "max_num_batched_tokens"):
            return self.max_num_batched_tokens
        return DEFAULT_MAX_BATCHED_TOKENS

    def _baseline_request(self, plans: dict[int, CapturePlan]) -> PlanRequest:
        if self.policy != "explicit":
            return self._plan_request(0)
        sizes = sorted({size for each in plans.values() for size in each.batch_sizes})
        return PlanRequest(0, self.max_batch_size, "explicit", tuple(sizes))
