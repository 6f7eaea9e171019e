"""Drive this tool's own engine in a process of its own, as ``engines.drivers`` drives others.

It lies here because it prepares a deployment as ``cgbench.run`` does.
"""

import time
from typing import Any

import cgbench
from cgbench.engines.drivers.device_time import profile_steps
from cgbench.engines.drivers.driver import peak_memory_bytes
from cgbench.engines.drivers.messages import (
    CapturedGraphs,
    Prefill,
    Prefilled,
    Profiled,
    Start,
    Started,
    Stepped,
)
from cgbench.words import Phase, Scope

BY_SCOPE = {Scope.ITERATION: Phase.ITERATION, Scope.PHASE: Phase.VERIFY}


class OwnDriver:
    """An ``OwnDriver`` is this tool with its graphs captured. One process serves several k."""

    def __init__(self) -> None:
        self._deployment: Any = None
        self._options: Any = None
        self._runner: Any = None
        self._prefilled: Any = None
        self._prompts: list[list[int]] = []
        self._tokens: list[list[int]] = []
        self._seed = 0

    def start(self, asked: Start) -> Started:
        """Load, plan and capture as ``asked.request`` states, the record of a run."""
        from cgbench.door.prepare import capture_graphs, prepare, use_passive_threads
        from cgbench.progress import SILENT
        from cgbench.request.run_request import RunRequest

        use_passive_threads()
        begin = time.perf_counter()
        import torch

        imported = time.perf_counter()
        setup = prepare(RunRequest.from_record(asked.request), SILENT)
        loaded = time.perf_counter()
        self._options = setup.options
        self._deployment, _ = capture_graphs(setup.deployment, SILENT)
        deployment = self._deployment
        captured = time.perf_counter()
        return Started(
            version=cgbench.__version__,
            import_s=imported - begin,
            start_s=captured - imported,
            memory_bytes=peak_memory_bytes(),
            facts={
                "torch": torch.__version__,
                "attention": deployment.attention,
                "compile": str(setup.options.compile),
                "acceptance": str(setup.options.acceptance),
                "capture_s": f"{captured - loaded:.2f}",
            },
            graphs=[vars(each) for each in self._graphs(asked.spec_tokens)],
        )

    def _graphs(self, spec_tokens: list[int]) -> list[CapturedGraphs]:
        found = []
        for (k, scope), _ in self._deployment.graph_sets.items():
            plan = self._deployment.plans[k]
            if k in spec_tokens:
                tokens = [bucket.num_tokens for bucket in plan.buckets]
                phase = BY_SCOPE[scope].value
                found.append(CapturedGraphs(k, phase, list(plan.batch_sizes), tokens))
        return found

    def prefill(self, asked: Prefill) -> Prefilled:
        from cgbench.engine.prefill import prefill

        begin = time.perf_counter()
        self._runner = self._runner_of(asked.spec_tokens)
        self._seed = asked.seed
        if asked.prompts != self._prompts:
            self._prompts = asked.prompts
            budget = self._options.max_num_batched_tokens
            self._prefilled = prefill(
                self._deployment.spec, asked.prompts, budget, self._options.seed, distinct=True
            )
        self._begin()
        self._synchronize()
        return Prefilled(time.perf_counter() - begin, 1, [1] * len(asked.prompts))

    def _runner_of(self, spec_tokens: int) -> Any:
        """Return the runner with the most in one graph."""
        runners = self._deployment.runners
        scopes = (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
        return next(
            runners[spec_tokens, scope] for scope in scopes if (spec_tokens, scope) in runners
        )

    def _begin(self) -> None:
        """Go back to the state after prefill, with the same draws each time."""
        from cgbench.engine.prefill import begin_decoding

        begin_decoding(
            self._deployment.spec,
            self._runner.state,
            self._prefilled,
            tokens_left=self._options.reach,
            ignore_eos=True,
            seed=self._seed,
        )
        self._tokens = [[token] for token in self._prefilled.last.tolist()]

    @property
    def _rows(self) -> Any:
        return self._runner.state.rows(len(self._prompts))

    def step(self) -> list[int]:
        """Make one iteration and return how many tokens each request got."""
        self._runner.step(len(self._prompts))
        results = self._rows.result.tolist()
        for made, (emitted, _, _, *out) in zip(self._tokens, results, strict=True):
            made.extend(out[:emitted])
        return [emitted for emitted, *_ in results]

    def steps(self, count: int, untimed: int) -> Stepped:
        """Time ``count`` iterations as a run times them, then count the tokens of the same ones."""
        from cgbench.measure.clock import time_iterations

        size = len(self._prompts)
        self._begin()
        for _ in range(untimed - 1):
            self._runner.step(size)
        # The clock runs one more before it times.
        times = time_iterations(self._runner, size, count)
        self._begin()
        before = [sum(each) for each in zip(*(self.step() for _ in range(untimed)), strict=True)]
        emitted = [self.step() for _ in range(count)]
        return Stepped(
            wall_s=[each.wall_s or each.gpu_s for each in times],
            emitted=emitted,
            untimed=before,
            device_s=[each.gpu_s for each in times],
            memory_bytes=peak_memory_bytes(),
        )

    def profile(self, count: int, untimed: int) -> Profiled:
        """Profile ``count`` iterations. The host reads nothing back in between."""
        size = len(self._prompts)
        self._begin()
        for _ in range(untimed):
            self._runner.step(size)
        start = self._rows.seq_len.tolist()

        def step() -> list[int]:
            self._runner.step(size)
            return [0] * size

        found = profile_steps(step, count, self._synchronize)
        end = self._rows.seq_len.tolist()
        found.emitted[:] = [new - old for new, old in zip(end, start, strict=True)]
        return found

    def tokens(self) -> list[list[int]]:
        """Return what each request decoded in the steps whose tokens were counted last."""
        return self._tokens

    def stop(self) -> None:
        self._deployment.release()

    def _synchronize(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
