"""This tool's own rows: scopes phase, iteration and eager, and verify alone."""

from dataclasses import dataclass

from cgbench.engine.deployment import Deployment
from cgbench.engine.iteration import verify_phase
from cgbench.engine.prefill import begin_decoding
from cgbench.engine.state import UNLIMITED_TOKENS, Prefilled
from cgbench.measure.clock import IterationTime, num_untimed, time_iterations
from cgbench.words import Phase, Scope
from peers.rounds import PeerError, Round, timed

NO_GRAPHS = "CUDA graphs need a CUDA device"


@dataclass(frozen=True)
class Prepared:
    """A deployment with its graphs captured and the prompts' KV in its slots. ``reach``: tokens
    that a request may decode."""

    deployment: Deployment
    prefilled: Prefilled
    reach: int

    @property
    def batch_size(self) -> int:
        return self.prefilled.batch_size

    def begin(self, spec_tokens: int, seed: int) -> None:
        """Back to the state after prefill."""
        begin_decoding(
            self.deployment.spec,
            self.deployment.states[spec_tokens],
            self.prefilled,
            tokens_left=UNLIMITED_TOKENS,
            ignore_eos=True,
            seed=seed,
        )


class Iterations:
    """Iterations of one scope and k, read back every time: timed as ``cgbench run`` does."""

    def __init__(self, prepared: Prepared, spec_tokens: int, scope: Scope) -> None:
        key = (spec_tokens, scope)
        if key not in prepared.deployment.runners:
            raise PeerError(NO_GRAPHS)
        self._prepared = prepared
        self._runner = prepared.deployment.runners[key]
        self._k = spec_tokens
        # Untimed iterations come before and after, and none may leave the room that KV has.
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
    """An iteration's wall time, which it has because L2 is not flushed here."""
    assert iteration.wall_s is not None
    return iteration.wall_s


class Verify:
    """Verify (and accept, which is in the same graph) of k + 1 tokens a request."""

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
