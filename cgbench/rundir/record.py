"""``run.json`` holds what a run was, without its numbers. It is read only if it is whole and
understood.

Written against the standard library alone, as ``schema`` is.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Self, get_origin, is_typeddict

from cgbench.errors import RunDirectoryError
from cgbench.floor.account import Account
from cgbench.floor.rates import DeviceLimits
from cgbench.inputs import JsonObject, parse_own_json
from cgbench.request.keys import Setting
from cgbench.rundir.accounts import account_faults
from cgbench.rundir.collective_share import CollectiveShare
from cgbench.rundir.migrations import SCHEMA_VERSION, migrated
from cgbench.rundir.record_parts import (
    EngineFacts,
    FloorFacts,
    LimitFacts,
    ModelFacts,
    PlanFacts,
    Resumed,
    Scalar,
    TelemetryFacts,
    WorkloadFacts,
)
from cgbench.rundir.record_schema import part_faults

# Runs of this schema version may lack these fields, because they came after the first ones were
# kept.
ADDED_FIELDS = frozenset({"telemetry", "floor", "seconds", "engine"})

_PADDED_PRODUCTS = "padded_products"
_BETWEEN_PRODUCTS = ", "


@dataclass(kw_only=True)
class RunRecord:
    """A ``RunRecord`` is the content of ``run.json``: everything about a run but its numbers.

    ``arguments`` are what was asked, as ``RunRequest.to_record`` writes it. ``model["label"]`` is
    the name that every table shows. ``complete`` turns true last.
    """

    cgbench_version: str
    created_utc: str
    environment: dict[str, Scalar]
    arguments: dict[str, Setting]
    model: ModelFacts
    workload: WorkloadFacts
    plans: list[PlanFacts]
    schema_version: int = SCHEMA_VERSION
    complete: bool = False
    thin: bool = False
    """Whether ``samples.parquet`` holds a row a block, not every iteration."""
    resumed: list[Resumed] = field(default_factory=list)
    capture: dict[str, Scalar] = field(default_factory=dict)
    """What compiling and the dummy run took, and the products that are multiplied with rows
    added."""
    warnings: list[str] = field(default_factory=list)
    telemetry: TelemetryFacts = field(default_factory=TelemetryFacts)
    floor: FloorFacts = field(default_factory=FloorFacts)
    seconds: dict[str, float] = field(default_factory=dict)
    """``run`` is from the start to the newest group's end. ``audit`` is the short audits' part of
    it.
    """
    engine: EngineFacts = field(default_factory=EngineFacts)
    """The engine beside this tool that decoded, if one did."""

    @property
    def mixture_words(self) -> str | None:
        """Return what ran a mixture's experts, its router and its shared expert in decode steps.

        It is None for a dense model. It is also None for a run that did not record it, whose
        experts ran transformers' own code.
        """
        experts, router = self.model.get("experts_path"), self.model.get("router_path")
        if experts is None:
            return None
        words, shared = (
            f"experts by {experts}, router by {router}",
            self.model.get("shared_expert_path"),
        )
        return words if shared is None else f"{words}, shared expert by {shared}"

    @property
    def limits(self) -> DeviceLimits | None:
        """Return the device's limits, as measured in this run. They are None before they were
        measured.
        """
        limits = self.floor.get("limits")
        if limits is None:
            return None
        return DeviceLimits(
            limits["read_bytes_per_s"],
            limits["flops_per_s"],
            limits.get("read_spread_frac", 0.0),
            limits.get("cache_bytes"),
            limits.get("fp8_flops_per_s"),
        )

    @property
    def accounts(self) -> list[Account]:
        """Return the floors' accounts, in the order in which their batch sizes were measured."""
        return [Account.from_dict(raw) for raw in self.floor.get("accounts", [])]

    def set_limits(self, limits: DeviceLimits) -> None:
        """Put in the device's limits. A rate that was not measured is left out."""
        facts = LimitFacts(
            read_bytes_per_s=limits.read_bytes_per_s,
            flops_per_s=limits.flops_per_s,
            read_spread_frac=limits.read_spread_frac,
            cache_bytes=limits.cache_bytes,
        )
        if limits.fp8_flops_per_s is not None:
            facts["fp8_flops_per_s"] = limits.fp8_flops_per_s
        self.floor["limits"] = facts

    def keep_accounts(self, batch_size: int, accounts: Sequence[Account]) -> None:
        """Put in the accounts of one batch size, in place of those of an earlier,
        unfinished try.
        """
        others = [each for each in self.accounts if each.batch_size != batch_size]
        self.floor["accounts"] = [each.to_dict() for each in (*others, *accounts)]

    def add_collectives(self, shares: Iterable[CollectiveShare]) -> None:
        """Put in the collectives' shares of a run whose ranks share the model. ``shares`` is empty
        for any other run.
        """
        for share in shares:
            self.model["tensor_parallel"]["collectives"].append(share.facts)

    def add_capture(self, facts: Mapping[str, Scalar]) -> None:
        """Put in what a step before the measurement took, under its names in ``capture``."""
        self.capture.update(facts)

    @property
    def padded_products(self) -> list[str]:
        """Return the products that are multiplied with rows added, in words."""
        words = str(self.capture.get(_PADDED_PRODUCTS) or "")
        return words.split(_BETWEEN_PRODUCTS) if words else []

    def add_padded_products(self, products: Iterable[str]) -> None:
        """Put in the products that are not there yet.

        They are chosen by timing, so a resumed run and each process of one may add others.
        """
        known = [*dict.fromkeys([*self.padded_products, *products])]
        if known:
            self.capture[_PADDED_PRODUCTS] = _BETWEEN_PRODUCTS.join(known)

    def add_warnings(self, lines: Iterable[str]) -> None:
        """Put in the lines that are not there yet."""
        self.warnings += [line for line in lines if line not in self.warnings]

    def add_resumed(self, entry: Resumed) -> None:
        """Put in one ``--resume``."""
        self.resumed.append(entry)

    def set_seconds(self, *, run: float, audit: float) -> None:
        """Put in the seconds of the run from its start until now, and the short audits' part of
        them.
        """
        self.seconds = {"run": run, "audit": audit}

    def copies(self, acceptance: str, batch_size: int) -> float:
        """Return how often a batch decodes each prompt under the rule ``acceptance``.

        A batch repeats prompts if it has more rows. Greedy decoding gives the same tokens each
        time, which is no more evidence than once. Under any other rule each request has its own
        draws, so the result is 1.
        """
        num_prompts: int | None = self.workload.get("num_prompts")
        if not num_prompts or acceptance != "greedy":
            return 1.0
        return max(batch_size / num_prompts, 1.0)

    def to_json(self) -> str:
        """Return the text of ``run.json``."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, file: Path) -> Self:
        """Read ``text``, the content of ``file``. An older schema version is brought to this one.

        Raise ``RunDirectoryError`` with the name ``file`` if the text is not JSON or comes from a
        schema version that is not read. It is also raised, with the field's name, if a field at any
        depth is unknown, missing, of another type or out of range.
        """
        raw = migrated(_object(text, file), file)
        held = [each for each in _kinds(cls) if each[0] in raw or each[0] not in ADDED_FIELDS]
        values = {name: _checked(raw, name, kind, file) for name, kind in held}
        if unknown := sorted(raw.keys() - values.keys()):
            raise RunDirectoryError(
                f"{file}: field {unknown[0]} is unknown. A newer cgbench may read it"
            )
        for fault in chain(part_faults(raw), account_faults(raw.get("floor", {}))):
            raise RunDirectoryError(f"{file}: {fault}")
        return cls(**values)


def _object(text: str, file: Path) -> JsonObject:
    try:
        raw = parse_own_json(text)
    except ValueError as error:
        raise RunDirectoryError(f"{file}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RunDirectoryError(f"{file}: not a JSON object")
    return raw


def _kinds(record: type[RunRecord]) -> list[tuple[str, type]]:
    """Return field names and the classes JSON reads them as: ``list`` for ``list[str]``."""
    return [(f.name, _kind(f.type)) for f in fields(record)]


def _kind(declared: Any) -> type:
    return dict if is_typeddict(declared) else get_origin(declared) or declared


def _checked(raw: JsonObject, name: str, kind: type, file: Path) -> Any:
    if not isinstance(raw.get(name), kind):
        raise RunDirectoryError(f"{file}: field {name} is missing or is not a {kind.__name__}")
    return raw[name]


def resumed_words(entry: Resumed) -> str:
    """Return one entry of a record's ``resumed`` in words: when it was, and what was kept."""
    finished = {
        "batch sizes": entry.get("kept_batch_sizes"),
        "processes": entry.get("kept_processes"),
    }
    kept = [
        f"{name} {', '.join(map(str, numbers)) or 'none'}"
        for name, numbers in finished.items()
        if numbers is not None
    ]
    return f"{entry['utc']}, kept {'; '.join(kept)}"
