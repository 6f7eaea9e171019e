"""Engines as tests start them: the small vLLM of ``engine_site``, and processes made by hand."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from cgbench.engines.drivers.messages import Prefill, Prefilled, Profiled, Stepped
from cgbench.engines.engine_cells import EngineCell, Work
from cgbench.engines.engine_process import EngineError
from cgbench.words import Mode, Scope

SITE = Path(__file__).parent / "engine_site"


def small_graphs() -> ModuleType:
    """The small engine's module of graphs, without the package that a driver imports."""
    spec = spec_from_file_location("small_graphs", SITE / "vllm" / "graphs.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Scripted:
    """A process that answers from a script: each step takes ``step_s`` and emits ``emitted``.

    ``log`` gets the name and the calls, in order. ``fails_at`` is the call of steps that fails.
    """

    def __init__(
        self,
        name: str,
        log: list[str],
        *,
        step_s: float = 0.01,
        emitted: int = 1,
        begins_anew: bool = False,
        fails_at: int | None = None,
    ) -> None:
        self.name, self.log_lines = name, log
        self.step_s, self.emitted, self.begins_anew = step_s, emitted, begins_anew
        self.fails_at = fails_at
        self.calls = 0
        self.size = 0

    def prefill(self, asked: Prefill, timeout_s: float) -> Prefilled:
        self.log_lines.append(f"{self.name} prefill k={asked.spec_tokens}")
        self.size = len(asked.prompts)
        return Prefilled(0.1, 1, [1] * self.size)

    def steps(self, count: int, untimed: int, timeout_s: float) -> Stepped:
        self.log_lines.append(f"{self.name} steps")
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise EngineError(f"{self.name} ended in steps with exit code 7. Its log is x.log")
        emitted = [[self.emitted] * self.size for _ in range(count)]
        return Stepped([self.step_s] * count, emitted, [untimed * self.emitted] * self.size)

    def profile(self, count: int, untimed: int, timeout_s: float) -> Profiled:
        self.log_lines.append(f"{self.name} profile")
        return Profiled(count, self.step_s, [count] * self.size, busy_s=self.step_s / 2)

    def tokens(self, timeout_s: float) -> list[list[int]]:
        return [[7] * 20 for _ in range(self.size)]


def cell_of(process: Scripted, spec_tokens: int = 0, batch_size: int = 2) -> EngineCell:
    """A cell of a scripted process."""
    return EngineCell(
        process=process,  # type: ignore[arg-type]
        engine=process.name,
        spec_tokens=spec_tokens,
        batch_size=batch_size,
        scope=Scope.PHASE,
        mode=Mode.GRAPH,
        bucket=batch_size,
    )


def work_of(batch_size: int = 2, *, band: int = 64, steps: int = 4) -> Work:
    """Work of ten tokens of context."""
    prompts = [[1] * 10 for _ in range(batch_size)]
    return Work(prompts, steps=steps, band=band, room=1000, seed=0, timeout_s=5)
