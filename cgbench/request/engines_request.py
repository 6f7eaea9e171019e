"""Hold what a comparison of engines is asked to do, checked before anything is started.

No torch here.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from cgbench.errors import BadInputError
from cgbench.inputs import check_known, check_whole, parse_json, shown
from cgbench.planning import MAX_SPEC_TOKENS, check_batch_size
from cgbench.request.choices import Device, KvDtype
from cgbench.request.keys import Recorded
from cgbench.request.parts import CaptureRequest, ModelRequest, TimingRequest, WorkloadRequest
from cgbench.request.run_request import RunRequest
from cgbench.words import Scope

ENGINES = ("cgbench", "vllm", "sglang", "transformers")
"""The engines that a comparison can drive, in the order in which they are shown."""

DEFAULT_STEPS = 16
UNTIMED_STEPS = 8
"""Steps after a prefill that are not timed: schedulers and drafters settle."""

PROFILED_STEPS = 8

SPARE_STEPS = 4
MAX_STEPS = 10_000


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """An ``EngineSettings`` states how one engine is started.

    ``arguments`` go to the engine's own constructor, and ``variables`` to its environment.
    ``python`` and ``site`` say where it lives, if not beside cgbench.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    site: Path | None = None


@dataclass(frozen=True, slots=True)
class EnginesRequest(Recorded):
    """An ``EnginesRequest`` states which engines decode the same work, and how long each is timed.

    ``engine_arg`` holds ``ENGINE:NAME=VALUE`` and ``engine_env`` ``ENGINE:NAME=VALUE`` too, with
    values as JSON where they are JSON. ``engine_python`` and ``engine_site`` hold ``ENGINE=PATH``.
    ``one_at_a_time`` keeps one process in memory. ``timing.iterations`` are the steps of a block,
    and ``rounds`` the most blocks of a cell. ``start_timeout`` and ``step_timeout`` are seconds.
    Raise ``BadInputError`` if a value cannot be used.
    """

    model: ModelRequest = field(default_factory=ModelRequest)
    capture: CaptureRequest = field(default_factory=CaptureRequest)
    workload: WorkloadRequest = field(default_factory=lambda: WorkloadRequest(batch_sizes=(1,)))
    timing: TimingRequest = field(default_factory=TimingRequest)
    device: Device = Device.AUTO
    seed: int = 0
    engine: tuple[str, ...] = ("vllm",)
    engine_arg: tuple[str, ...] = ()
    engine_env: tuple[str, ...] = ()
    engine_python: tuple[str, ...] = ()
    engine_site: tuple[str, ...] = ()
    one_at_a_time: bool = False
    rounds: int = 12
    start_timeout: float = 900.0
    step_timeout: float = 120.0

    def __post_init__(self) -> None:
        Recorded.__post_init__(self)
        check_known("--engine", self.engine, ENGINES)
        for k in self.capture.spec_tokens:
            check_whole("--spec-tokens", k, 0, MAX_SPEC_TOKENS)
        for size in self.workload.batch_sizes:
            check_batch_size("--batch-sizes", size)
        check_whole("--context-len", self.workload.context_len, 1)
        check_whole("--steps", self.steps, 1, MAX_STEPS)
        check_whole("--rounds", self.rounds, 1, MAX_STEPS)
        for flag, value in self._time_limits():
            if not (isfinite(value) and value > 0):
                raise BadInputError(f"{flag} {value:g}: must be above 0")
        if self.max_num_seqs < max(self.workload.batch_sizes):
            raise BadInputError(
                f"--batch-sizes {max(self.workload.batch_sizes)}: over --max-num-seqs "
                f"{self.max_num_seqs}"
            )
        if self.model.kv_dtype != KvDtype.AUTO:
            raise BadInputError(
                f"--kv-dtype {self.model.kv_dtype}: engines keep keys and values in the model's "
                "dtype here. Use auto"
            )
        if (reduced := self.model.draft_vocab_flag) is not None:
            raise BadInputError(f"{reduced}: engines draft any token. Leave out --engine")
        self.settings()

    def _time_limits(self) -> tuple[tuple[str, float], ...]:
        return ("--start-timeout", self.start_timeout), ("--step-timeout", self.step_timeout)

    @property
    def engines(self) -> tuple[str, ...]:
        """Return the engines once each, in the order given."""
        return tuple(dict.fromkeys(self.engine))

    @property
    def steps(self) -> int:
        """Return the timed steps of a block."""
        asked = self.timing.iterations
        return DEFAULT_STEPS if asked is None else asked

    @property
    def max_num_seqs(self) -> int:
        """Return the most requests that an engine is started for."""
        most = self.capture.max_num_seqs
        return max(self.workload.batch_sizes) if most is None else most

    @property
    def spec_tokens(self) -> tuple[int, ...]:
        """Return every k that is measured, ascending."""
        return self.capture.spec_tokens

    @property
    def band(self) -> int:
        """Return the tokens past the context after which a batch is prefilled again."""
        return 6 * self.steps

    @property
    def room(self) -> int:
        """Return the tokens past the context that a request may need.

        It begins a block within the band and may keep every draft in it. While the other requests
        of its batch are prefilled, it decodes too.
        """
        tokens = self.max_num_seqs * self.workload.context_len
        prefills = -(-tokens // self.capture.max_num_batched_tokens)
        block = UNTIMED_STEPS + max(self.steps, PROFILED_STEPS)
        return self.band + (max(self.spec_tokens) + 1) * (block + prefills + SPARE_STEPS)

    @property
    def run(self) -> RunRequest:
        """Return the run that this tool's own engine is prepared for, which records keep too."""
        acceptance = self.workload.acceptance or "greedy"
        return RunRequest(
            self.model,
            replace(self.capture, scopes=(Scope.ITERATION,), max_num_seqs=self.max_num_seqs),
            replace(
                self.workload,
                acceptance=acceptance,
                ignore_eos=True,
                max_new_tokens=max(self.workload.max_new_tokens, self.room),
            ),
            replace(self.timing, iterations=self.steps),
            device=self.device,
            seed=self.seed,
        )

    def settings(self) -> dict[str, EngineSettings]:
        """Return how each engine is started. Raise ``BadInputError``, which names the flag."""
        arguments = self._by_engine("--engine-arg", self.engine_arg)
        variables = self._by_engine("--engine-env", self.engine_env)
        pythons = self._paths("--engine-python", self.engine_python)
        sites = self._paths("--engine-site", self.engine_site)
        return {
            name: EngineSettings(
                name,
                {key: _as_json(text) for key, text in arguments.get(name, {}).items()},
                variables.get(name, {}),
                str(pythons[name]) if name in pythons else None,
                sites.get(name),
            )
            for name in self.engines
        }

    def _by_engine(self, flag: str, texts: Iterable[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for text in texts:
            name, colon, pair = text.partition(":")
            key, equals, value = pair.partition("=")
            if not (colon and equals and key):
                raise BadInputError(f"{flag} {shown(text)}: must be ENGINE:NAME=VALUE")
            self._check_asked(flag, text, name)
            found.setdefault(name, {})[key] = value
        return found

    def _paths(self, flag: str, texts: Iterable[str]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for text in texts:
            name, equals, path = text.partition("=")
            if not (equals and path):
                raise BadInputError(f"{flag} {shown(text)}: must be ENGINE=PATH")
            self._check_asked(flag, text, name)
            if not Path(path).exists():
                raise BadInputError(f"{flag} {shown(text)}: there is no {path}")
            found[name] = Path(path).absolute()
        return found

    def _check_asked(self, flag: str, text: str, name: str) -> None:
        if name not in self.engines:
            raise BadInputError(f"{flag} {shown(text)}: --engine {shown(name)} is not asked for")


def _as_json(text: str) -> Any:
    """Return ``text`` as the JSON value it is, or as text."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return parse_json("--engine-arg", text)
