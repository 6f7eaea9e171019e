"""Declare as types what stands inside the fields of ``run.json``. ``record_schema`` states what is
checked.

A part that older runs lack may be missing.
"""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

from cgbench.floor.account import AccountFacts

Scalar: TypeAlias = str | int | float | bool | None


class CollectiveFacts(TypedDict):
    """This is a cell's collectives beside its iteration: see ``rundir.collective_share``."""

    scope: str
    spec_tokens: int
    batch_size: int
    collectives_p50_ms: float
    iteration_p50_ms: float
    frac: float


class ParallelFacts(TypedDict):
    """This describes how ranks share the model."""

    tp_size: int
    backend: str
    links: str
    few_numbers: str
    target: str
    lm_head: str
    collectives: list[CollectiveFacts]
    head: str | None
    kv_copies: NotRequired[int]
    """How many ranks hold each head of keys and values."""


class ModelFacts(TypedDict):
    """This describes the model. ``label`` is the name that every table shows. ``experts_path`` and
    ``router_path`` name what ran a mixture's experts and its router in decode steps.
    """

    label: str
    fingerprint: str
    head: NotRequired[str]
    random_weights: NotRequired[bool]
    routing: NotRequired[str]
    experts_path: NotRequired[str]
    router_path: NotRequired[str]
    shared_expert_path: NotRequired[str]
    """What ran a mixture's shared expert in decode steps.

    It is ``cgbench``, inside the experts' kernels, or ``products`` of its own.
    """
    latent_path: NotRequired[str]
    """What ran latent attention in decode steps: ``kernels`` or ``torch``."""
    num_parameters: NotRequired[int]
    head_num_parameters: NotRequired[int]
    weight_bytes: NotRequired[int]
    kv_bytes: NotRequired[int]
    kv_format: NotRequired[str]
    """How keys and values are kept, if not in the model's dtype."""
    mtp_modules: NotRequired[str | None]
    head_wiring: NotRequired[dict[str, str] | None]
    head_aux_layers: NotRequired[list[int] | None]
    """The target's layers whose input an EAGLE-3 head is fed."""
    tensor_parallel: NotRequired[ParallelFacts]


class WorkloadFacts(TypedDict):
    """This describes what was decoded, and how long cells were timed."""

    version: int
    sha256: str
    num_prompts: int
    context_band_tokens: int
    source: NotRequired[str]
    licence: NotRequired[str | None]
    package: NotRequired[str | None]
    chat_template: NotRequired[bool]
    context_len: NotRequired[int]
    mean_context_len: NotRequired[float]
    precision: NotRequired[float]
    min_time_s: NotRequired[float]
    max_time_s: NotRequired[float]


class PlanFacts(TypedDict):
    """This is the capture plan of one k."""

    spec_tokens: int
    batch_sizes: Sequence[int]
    policy: NotRequired[str]
    max_batch_size: NotRequired[int]
    capture_tokens: NotRequired[Sequence[int]]
    indivisible: NotRequired[Sequence[int]]
    eager_batch_sizes: NotRequired[int]
    mean_padding: NotRequired[float]
    warnings: NotRequired[Sequence[str]]


class Resumed(TypedDict):
    """This is one ``--resume``: when it was, and what was finished by then. In a merged run
    ``process`` is the process that was resumed.
    """

    utc: str
    kept_batch_sizes: NotRequired[list[int]]
    kept_processes: NotRequired[list[int]]
    process: NotRequired[int]


class Spread(TypedDict):
    """This is the spread of a quantity over all timed blocks."""

    min: float
    median: float
    max: float


Told: TypeAlias = Literal["sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"]
"""The numbers that a GPU reports of itself."""


class TelemetryFacts(TypedDict, total=False):
    """This is what the GPU reported of itself. What it did not report is left out."""

    sm_clock_mhz: Spread
    memory_clock_mhz: Spread
    temperature_c: Spread
    power_w: Spread
    throttle_reasons: list[str]
    other_processes: int
    blocks: int
    discarded: dict[str, int]


class LimitFacts(TypedDict):
    """This is a ``floor.rates.DeviceLimits`` in ``run.json``."""

    read_bytes_per_s: float
    flops_per_s: float
    read_spread_frac: NotRequired[float]
    cache_bytes: NotRequired[int | None]
    fp8_flops_per_s: NotRequired[float]


class FloorFacts(TypedDict, total=False):
    """This holds the device's limits, as measured in this run, and accounts: see
    ``floor.account``.
    """

    limits: LimitFacts
    accounts: list[AccountFacts]


class PhaseFacts(TypedDict):
    """This is a phase's graphs beside the plan's, in requests: see ``planning.captured``."""

    spec_tokens: int
    phase: str
    planned: list[int]
    captured: list[int]
    piece_tokens: list[int]
    note: str


class ProfileFacts(TypedDict):
    """This is what the device did in a profiled step of one cell. ``top`` holds the longest
    kernels: name, milliseconds and count a step.
    """

    spec_tokens: int
    batch_size: int
    steps: int
    wall_ms: float
    gpu_busy_ms: float | None
    kernel_ms: float | None
    kernels: float | None
    copies: float | None
    graph_launches: float | None
    kernel_launches: float | None
    top: list[list[str | float]]


class EngineFacts(TypedDict, total=False):
    """This describes the engine of a run by ``cgbench peers --engine``. It is empty for
    ``cgbench run``.

    ``facts`` are versions, modes and backends in the engine's own words. ``turns`` states which
    engines took blocks in turn with this one. ``findings`` are differences between plan and
    capture. ``failures`` are why cells are missing.
    """

    name: str
    version: str
    policy: str | None
    facts: dict[str, str]
    arguments: str
    variables: list[str]
    logs: list[str]
    import_s: float
    start_s: float
    memory_bytes: int | None
    turns: str
    phases: list[PhaseFacts]
    findings: list[str]
    failures: list[str]
    profiles: list[ProfileFacts]
