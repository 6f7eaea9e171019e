"""Hold a comparison of engines as plain rows, for tables and JSON. There is no torch here."""

from dataclasses import asdict, dataclass
from pathlib import Path

from cgbench.inputs import JsonObject
from cgbench.rundir.record_parts import EngineFacts, Scalar


@dataclass(frozen=True, slots=True)
class EngineRow:
    """An ``EngineRow`` is one engine at one k and batch size. Times are milliseconds a step.

    ``wall_ms`` is the median wall time of a step, and ``half_width_ms`` half of its interval at
    95 %. ``device_ms`` is the median by device events, for this tool alone. ``gpu_busy_ms`` is from
    the profiled steps. ``tokens_per_step`` is a request's mean. ``failure`` is why there are no
    numbers.
    """

    engine: str
    spec_tokens: int
    batch_size: int
    mode: str
    bucket: int | None
    status: str
    blocks: int = 0
    wall_ms: float | None = None
    half_width_ms: float | None = None
    device_ms: float | None = None
    gpu_busy_ms: float | None = None
    kernels_per_step: float | None = None
    graph_launches_per_step: float | None = None
    tokens_per_step: float | None = None
    tokens_per_s: float | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class EnginesTable:
    """An ``EnginesTable`` is the result of ``cgbench.peer_engines``.

    ``rows`` are in the order of batch sizes, k and engines. ``engines`` describe each engine that
    became ready, and ``runs`` name its run directory. ``omissions`` are lines on what an engine
    cannot serve, and ``failures`` on engines that failed.
    """

    command: str
    model: str
    dtype: str
    routing: str
    context_len: int
    environment: dict[str, Scalar]
    rows: list[EngineRow]
    engines: list[EngineFacts]
    runs: dict[str, Path]
    omissions: list[str]
    failures: list[str]

    @property
    def findings(self) -> list[str]:
        """Return every difference between plan and capture, with the engine's name before it."""
        return [
            f"{each['name']} {each['version']}: {line}"
            for each in self.engines
            for line in each["findings"]
        ]

    def to_json(self) -> JsonObject:
        """Return everything as plain values."""
        return {
            **asdict(self),
            "runs": {name: str(path) for name, path in self.runs.items()},
            "findings": self.findings,
        }
