"""This tool's own rows: scopes phase, iteration and eager, and verify alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cgbench.engine.iteration import verify_phase
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.state import UNLIMITED_TOKENS, Prefilled
from cgbench.engines.peer_rounds import VERIFY_CALLS, Peer, PeerError
from cgbench.engines.peer_rows import Round
from cgbench.engines.wall_time import timed
from cgbench.measure.bench import Bench
from cgbench.measure.clock import IterationTime, num_untimed, time_iterations
from cgbench.words import Phase, Scope

NO_GRAPHS = "CUDA graphs need a CUDA device"


@dataclass(frozen=True)
class Prepared:
    """A bench with its graphs captured and the prompts' KV in its slots."""

    bench: Bench
    prefilled: Prefilled

    @property
    def batch_size(self) -> int:
        return self.prefilled.batch_size

    def begin(self, spec_tokens: int, seed: int) -> None:
        """Back to the state after prefill."""
        begin_decoding(
            self.bench.spec,
            self.bench.states[spec_tokens],
            self.prefilled,
            tokens_left=UNLIMITED_TOKENS,
            ignore_eos=True,
            seed=seed,
        )


class Iterations:
    """Iterations of one scope and k, read back every time: timed as ``cgbench run`` does."""

    def __init__(self, prepared: Prepared, spec_tokens: int, scope: Scope) -> None:
        key = (spec_tokens, scope)
        if key not in prepared.bench.runners:
            raise PeerError(NO_GRAPHS)
        self._prepared = prepared
        self._runner = prepared.bench.runners[key]
        self._k = spec_tokens
        # Untimed iterations come before and after, and none may leave the room that KV has.
        self._untimed = num_untimed(prepared.bench.device)
        self._count = prepared.bench.options.reach // (spec_tokens + 1) - self._untimed

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
        bench, rows = prepared.bench, prepared.bench.states[spec_tokens].rows(prepared.batch_size)
        graphs = bench.graph_sets.get((spec_tokens, Scope.PHASE))
        if graphs is None:
            self._call = lambda: verify_phase(bench.spec, rows)
            return
        bucket = bench.plans[spec_tokens].bucket_for(prepared.batch_size)
        if bucket is None:
            raise PeerError(f"no graph holds {prepared.batch_size} requests")
        verify = graphs.captured(bucket.batch_size)[0]
        assert verify.cost.phase is Phase.VERIFY
        self._call = verify.graph.replay

    def round(self, seed: int) -> Round:
        prepared = self._prepared
        prepared.begin(self._k, seed)
        seconds = timed(self._call, self._calls, prepared.bench.device)
        return Round(seconds, self._calls, self._calls * prepared.batch_size * (self._k + 1))


class OwnEngine:
    """This tool, its graphs captured: every scope with ``spec_tokens`` drafts and with none."""

    def __init__(self, bench: Bench, prompts: list[list[int]], spec_tokens: int) -> None:
        options = bench.options
        budget, seed = options.max_num_batched_tokens, options.seed
        self._prepared = Prepared(bench, prefill(bench.spec, prompts, budget, seed))
        self._k = spec_tokens

    def peers(self) -> dict[str, Callable[[], Peer]]:
        made: dict[str, Callable[[], Peer]] = {
            f"{scope}{suffix}": partial(Iterations, self._prepared, drafts, scope)
            for suffix, drafts in (("", self._k), ("-k0", 0))
            for scope in (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
        }
        return {**made, "verify": partial(Verify, self._prepared, self._k, VERIFY_CALLS)}

    def stop(self) -> None:
        self._prepared.bench.release()
