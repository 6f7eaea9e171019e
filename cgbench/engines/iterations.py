"""Make the peers of this tool: scopes phase, iteration and eager, and verify alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cgbench.engine.deployment import Deployment
from cgbench.engine.iteration import verify_phase
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.state import UNLIMITED_TOKENS, Prefilled
from cgbench.engines.peer_rounds import VERIFY_CALLS, Peer, PeerError
from cgbench.engines.peer_rows import Round
from cgbench.engines.wall_time import timed
from cgbench.measure.clock import IterationTime, num_untimed, time_iterations
from cgbench.request.options import RunOptions
from cgbench.words import Phase, Scope

NO_GRAPHS = "CUDA graphs need a CUDA device"


@dataclass(frozen=True)
class Prepared:
    """A ``Prepared`` holds a deployment with its graphs captured and the prompts' KV in its slots.
    ``reach`` is the number of tokens that a request may decode.
    """

    deployment: Deployment
    prefilled: Prefilled
    reach: int

    @property
    def batch_size(self) -> int:
        """Return the number of requests."""
        return self.prefilled.batch_size

    def begin(self, spec_tokens: int, seed: int) -> None:
        """Go back to the state after prefill."""
        begin_decoding(
            self.deployment.spec,
            self.deployment.states[spec_tokens],
            self.prefilled,
            tokens_left=UNLIMITED_TOKENS,
            ignore_eos=True,
            seed=seed,
        )


class Iterations:
    """This peer runs iterations of one scope and k, and reads each one back. They are timed as
    ``cgbench run`` times them. Raise ``PeerError`` if that scope has no graphs here.
    """

    def __init__(self, prepared: Prepared, spec_tokens: int, scope: Scope) -> None:
        key = (spec_tokens, scope)
        if key not in prepared.deployment.runners:
            raise PeerError(NO_GRAPHS)
        self._prepared = prepared
        self._runner = prepared.deployment.runners[key]
        self._k = spec_tokens
        # Untimed iterations come before and after. Even these must stay within the room of the KV
        # cache.
        self._untimed = num_untimed(prepared.deployment.device)
        self._count = prepared.reach // (spec_tokens + 1) - self._untimed

    def round(self, seed: int) -> Round:
        prepared = self._prepared
        prepared.begin(self._k, seed)
        rows = self._runner.state.rows(prepared.batch_size)
        start = int(rows.seq_len.sum())
        times = time_iterations(self._runner, prepared.batch_size, self._count)
        emitted = int(rows.seq_len.sum()) - start
        seconds = sum(map(wall_seconds, times))
        return Round(seconds, self._count, emitted * self._count / (self._count + self._untimed))


def wall_seconds(iteration: IterationTime) -> float:
    """Return an iteration's wall time. It has one, because L2 is not flushed here."""
    assert iteration.wall_s is not None
    return iteration.wall_s


class Verify:
    """This peer runs verify of k + 1 tokens a request. Accept is included, because it is in the
    same graph. Raise ``PeerError`` if no graph holds the batch.
    """

    def __init__(self, prepared: Prepared, spec_tokens: int, calls: int) -> None:
        self._prepared = prepared
        self._k = spec_tokens
        self._calls = calls
        deployment = prepared.deployment
        rows = deployment.states[spec_tokens].rows(prepared.batch_size)
        graphs = deployment.graph_sets.get((spec_tokens, Scope.PHASE))
        if graphs is None:
            self._call = lambda: verify_phase(deployment.spec, rows)
            return
        bucket = deployment.plans[spec_tokens].bucket_for(prepared.batch_size)
        if bucket is None:
            raise PeerError(f"no graph holds {prepared.batch_size} requests")
        verify = graphs.captured(bucket.batch_size)[0]
        assert verify.cost.phase is Phase.VERIFY
        self._call = verify.graph.replay

    def round(self, seed: int) -> Round:
        prepared = self._prepared
        prepared.begin(self._k, seed)
        seconds = timed(self._call, self._calls, prepared.deployment.device)
        return Round(seconds, self._calls, self._calls * prepared.batch_size * (self._k + 1))


class OwnEngine:
    """This engine is this tool with its graphs captured: every scope with ``k`` drafts and with
    none.
    """

    def __init__(
        self, deployment: Deployment, options: RunOptions, prompts: list[list[int]], k: int
    ) -> None:
        budget, seed = options.max_num_batched_tokens, options.seed
        prefilled = prefill(deployment.spec, prompts, budget, seed)
        self._prepared = Prepared(deployment, prefilled, options.reach)
        self._k = k

    def peers(self) -> dict[str, Callable[[], Peer]]:
        made: dict[str, Callable[[], Peer]] = {
            f"{scope}{suffix}": partial(Iterations, self._prepared, drafts, scope)
            for suffix, drafts in (("", self._k), ("-k0", 0))
            for scope in (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
        }
        return {**made, Phase.VERIFY.value: partial(Verify, self._prepared, self._k, VERIFY_CALLS)}

    def stop(self) -> None:
        self._prepared.deployment.release()
