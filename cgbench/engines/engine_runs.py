"""Keep what was measured of an engine as a run directory, like any other."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import cgbench
from cgbench.engines.drivers.messages import Started
from cgbench.engines.engine_cells import EngineCell
from cgbench.engines.engine_facts import (
    captured_sizes,
    milliseconds,
    phase_facts,
    profile_facts,
    tokens_hash,
)
from cgbench.engines.engine_launch import routing_of
from cgbench.engines.engine_models import ServedModel
from cgbench.errors import PlanError
from cgbench.floor.telemetry import Watch
from cgbench.planning.captured import (
    CapturedPhase,
    beside_plan,
    policy_of,
    refusal,
    request_of,
)
from cgbench.request.engines_request import EngineSettings, EnginesRequest
from cgbench.rundir.record import RunRecord
from cgbench.rundir.record_parts import (
    EngineFacts,
    PlanFacts,
    ProfileFacts,
    Scalar,
)
from cgbench.rundir.schema import BY_DEVICE, BY_WALL, OWN_ENGINE, TARGETS, UNQUANTISED, Cell
from cgbench.rundir.store import RunDirectory, ToMarkdown
from cgbench.words import Routing
from cgbench.workload.load import WORKLOAD_VERSION, Workload

ENGINES_OWN = "engine"
"""What a column says of another engine's choice."""


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A ``SharedModel`` holds what all engines of a comparison share of MODEL and its work.

    ``routing`` is what was asked for. ``weight_bytes`` are those of the target and of its head.
    ``quant``, ``mtp_modules`` and ``draft_vocab`` are what the columns of these names say of it.
    """

    label: str
    head_label: str
    is_random: bool
    dtype: str
    device: str
    routing: Routing
    served: ServedModel
    workload: Workload
    weight_bytes: int
    head_bytes: int
    kv_bytes_per_token: int
    state_bytes_per_slot: int
    quant: str = UNQUANTISED
    mtp_modules: int = 1
    draft_vocab: str = TARGETS
    environment: dict[str, Scalar] = field(default_factory=dict)


@dataclass
class EngineRun:
    """An ``EngineRun`` is one engine's part of a comparison, with its run directory.

    ``started`` has an answer for each k. ``phases`` are the graphs beside the plan's.
    """

    settings: EngineSettings
    request: EnginesRequest
    model: SharedModel
    path: Path
    started: dict[int, Started] = field(default_factory=dict)
    phases: list[CapturedPhase] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    omissions: list[str] = field(default_factory=list)
    """Lines on k that the engine cannot serve. They leave the run whole."""
    profiles: list[ProfileFacts] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    turns: str = ""
    policy: str | None = None
    directory: RunDirectory | None = None
    num_k: int = 0
    """How many k this engine serves. A batch size is written once all of them are measured."""
    _waiting: dict[int, list[tuple[EngineCell, Watch]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return the engine's name."""
        return self.settings.name

    def add_started(self, spec_tokens: Iterable[int], started: Started) -> None:
        """Take the answer of a process that is ready for ``spec_tokens``, and judge its graphs."""
        for k in spec_tokens:
            self.started[k] = started
            if self.name != OWN_ENGINE:
                self._judge(k, started)

    def _judge(self, k: int, started: Started) -> None:
        self.policy = policy_of(self.name, started.version)
        graphs = [each for each in started.graphs if each["spec_tokens"] == k]
        if self.policy is None or not started.options:
            return
        asked = request_of(
            self.policy,
            k,
            self.request.max_num_seqs,
            self.request.capture.max_num_batched_tokens,
            self.settings.arguments,
        )
        try:
            phases = beside_plan(asked, graphs)
        except PlanError as error:
            self.findings.append(refusal(error))
            return
        self.phases.extend(phases)
        self.findings.extend(each.finding for each in phases if each.finding)

    def add_failure(self, line: str) -> None:
        """Keep why something of this engine is missing."""
        if line not in self.failures:
            self.failures.append(line)

    def add_omission(self, line: str) -> None:
        """Keep why a k of this engine is not measured."""
        self.omissions.append(line)

    def add_cells(self, cells: Sequence[EngineCell], watch: Watch) -> None:
        """Take the cells of one batch size, and write it once every k is there."""
        for cell in cells:
            self._waiting.setdefault(cell.batch_size, []).append((cell, watch))
        for batch_size, held in [*self._waiting.items()]:
            if len(held) >= self.num_k:
                self._write(self._waiting.pop(batch_size))

    def _write(self, held: Sequence[tuple[EngineCell, Watch]]) -> None:
        there = [(cell, watch) for cell, watch in held if cell.blocks or cell.is_out_of_memory]
        if not there:
            return
        if self.directory is None:
            self.directory = RunDirectory.create(self.path, self._record())
        for cell, _ in there:
            if cell.profiled is not None:
                self.profiles.append(profile_facts(cell, cell.profiled))
        self.directory.record.engine = self.facts()
        self.directory.write_group(
            [self._cell(cell) for cell, _ in there],
            [sample for cell, _ in there for sample in cell.samples()],
            (),
            [row for cell, watch in there for row in cell.block_rows(watch)],
        )

    def finish(self, to_markdown: ToMarkdown) -> None:
        """Write what still waits, and that the run is complete unless something of it failed."""
        for held in self._waiting.values():
            self._write(held)
        self._waiting.clear()
        if self.directory is None:
            return
        record = self.directory.record
        record.engine = self.facts()
        record.add_warnings([*self.findings, *self.omissions, *self.failures])
        self.directory.finish(to_markdown, is_complete=not self.failures)

    def _record(self) -> RunRecord:
        request, model = self.request, self.model
        first = next(iter(self.started.values()))
        return RunRecord(
            cgbench_version=cgbench.__version__,
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            environment={
                **model.environment,
                "engine": self.name,
                "engine_version": first.version,
                "engine_arguments": self._arguments(),
                "engine_variables": " ".join(self._variables()) or None,
            },
            arguments=request.run.to_record(),
            model={
                "label": model.label,
                "head": model.head_label,
                "random_weights": model.is_random,
                "routing": routing_of(self.name, model.routing).value,
                "fingerprint": model.served.fingerprint,
                "weight_bytes": model.weight_bytes + model.head_bytes,
            },
            workload={
                "version": WORKLOAD_VERSION,
                "source": model.workload.source,
                "licence": model.workload.licence,
                "package": model.workload.package,
                "chat_template": model.workload.chat_template,
                "num_prompts": len(model.workload.prompts),
                "sha256": model.workload.sha256,
                "context_len": request.workload.context_len,
                "context_band_tokens": request.band,
            },
            plans=[self._plan(k) for k in self.started],
            engine=self.facts(),
        )

    def _plan(self, k: int) -> PlanFacts:
        sizes = captured_sizes(self.started[k], k)
        return {
            "policy": f"captured by {self.name} {self.started[k].version}",
            "spec_tokens": k,
            "max_batch_size": self.request.max_num_seqs,
            "batch_sizes": sizes,
        }

    def _arguments(self) -> str:
        return json.dumps(dict(self.settings.arguments), sort_keys=True)

    def _variables(self) -> list[str]:
        return [f"{name}={value}" for name, value in sorted(self.settings.variables.items())]

    def facts(self) -> EngineFacts:
        """Return what the record has of the engine."""
        every = list({id(each): each for each in self.started.values()}.values())
        facts: dict[str, str] = {}
        for k, started in self.started.items():
            for name, value in started.facts.items():
                # A fact that differs between two k is kept for both.
                if facts.setdefault(name, value) != value:
                    facts[f"{name} at k = {k}"] = value
        return EngineFacts(
            name=self.name,
            version=every[0].version,
            policy=self.policy,
            facts=facts,
            arguments=self._arguments(),
            variables=self._variables(),
            logs=[file.name for file in self.logs],
            import_s=max(each.import_s for each in every),
            start_s=max(each.start_s for each in every),
            memory_bytes=sum(each.memory_bytes or 0 for each in every) or None,
            turns=self.turns,
            phases=[phase_facts(each) for each in self.phases],
            findings=[*self.findings],
            failures=[*self.failures],
            profiles=[*self.profiles],
        )

    def _cell(self, cell: EngineCell) -> Cell:
        model, profiled = self.model, cell.profiled
        accepted, drafted = cell.accepted_per_pos()
        is_own = self.name == OWN_ENGINE
        facts = self.started[cell.spec_tokens].facts
        kept = cell.kept
        return Cell(
            model=model.label,
            head=model.head_label if cell.spec_tokens else "none",
            device=model.device,
            dtype=model.dtype,
            attention=facts["attention"] if is_own else ENGINES_OWN,
            compile=facts["compile"] if is_own else ENGINES_OWN,
            acceptance=facts["acceptance"] if is_own else "greedy",
            tp_size=1,
            mode=cell.mode,
            scope=cell.scope,
            spec_tokens=cell.spec_tokens,
            batch_size=cell.batch_size,
            bucket=cell.bucket,
            padding_frac=(
                None if cell.bucket is None else (cell.bucket - cell.batch_size) / cell.bucket
            ),
            context_len=self.request.workload.context_len,
            status=cell.status,
            tokens_sha256=tokens_hash(cell.tokens),
            peak_memory_bytes=cell.peak_memory_bytes,
            floor_ms=None,
            num_accepted_per_pos=accepted,
            num_drafted=drafted,
            mean_context_len=(
                sum(each.mean_context_len for each in kept) / len(kept) if kept else None
            ),
            discarded_blocks=sum(map(bool, cell.discarded)),
            routing=routing_of(self.name, model.routing),
            engine=self.name,
            # In what numbers another engine multiplies FP8 weights is its own affair.
            quant=model.quant if is_own or model.quant == UNQUANTISED else ENGINES_OWN,
            mtp_modules=model.mtp_modules if cell.spec_tokens else 1,
            draft_vocab=model.draft_vocab if cell.spec_tokens else TARGETS,
            timed_by=BY_DEVICE if is_own else BY_WALL,
            gpu_busy_ms=milliseconds(profiled.busy_s) if profiled else None,
            kernels_per_step=profiled.kernels if profiled else None,
            graph_launches_per_step=profiled.graph_launches if profiled else None,
        )
