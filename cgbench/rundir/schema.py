"""Declare the columns, dtypes and units of every file in a run directory, each once.

Written against the standard library alone, because the measuring side and the light commands import
it and must not pay for pandas. Times are seconds in the records and in ``samples.parquet``. They
are milliseconds in the tables that a person reads.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cgbench.words import Mode, Phase, Quant, Routing, Scope, Stage, Status


class Range(NamedTuple):
    """A ``Range`` is what a number may be, both ends included. It is never infinite, and
    never NaN.
    """

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.16g} to {self.most:.16g}"


# Past this number a float does not hold every whole number.
LARGEST = 2.0**53

COUNT = Range(0, LARGEST)
FROM_ONE = Range(1, LARGEST)
SIGNED = Range(-LARGEST, LARGEST)
SHARE = Range(0, 1)
DRAFTS = Range(0, 1024)
REQUESTS = Range(1, 2**20)
ROWS = Range(0, 1e12)
"""Rows that a generate pass decodes. More would leave a rate's error to rounding."""
SECONDS = Range(1e-12, 1e9)
MILLISECONDS = Range(1e-9, 1e12)

MAX_TEXT = 4096
"""The most characters of a text, as many as a path may have."""


def _is_any(_: str) -> bool:
    return True


class Column(NamedTuple):
    """A ``Column`` declares one column of a table: its name, its pandas dtype, and what it means.

    An empty cell is NaN in a ``float64`` and NA in an ``Int64`` or ``string``. An ``int64`` column
    has no empty cell, and neither has one that is ``filled``. A column that is ``added`` is not in
    every run directory of this schema version. If it is missing, each row is read as ``default``. A
    column with ``words`` holds one of them in every row. Numbers lie ``within`` a range.
    ``is_right`` decides whether a text is one that the column can hold.
    """

    name: str
    dtype: str
    meaning: str
    added: bool = False
    default: str | int | None = None
    words: tuple[str, ...] = ()
    within: Range = COUNT
    filled: bool = False
    is_right: Callable[[str], bool] = _is_any

    @property
    def is_text(self) -> bool:
        """Return whether the column holds texts."""
        return self.dtype == "string"

    @property
    def is_never_empty(self) -> bool:
        """Return whether no cell may be empty."""
        return self.filled or bool(self.words) or self.dtype == "int64"


def _added(name: str, dtype: str, meaning: str, default: str | int | None = None) -> Column:
    return Column(name, dtype, meaning, added=True, default=default, filled=default is not None)


def _label(name: str, meaning: str) -> Column:
    """Declare a text that every row has."""
    return Column(name, "string", meaning, filled=True)


def _time_ms(name: str, meaning: str) -> Column:
    return Column(name, "float64", meaning, within=MILLISECONDS)


def _graph_ms(name: str, meaning: str) -> Column:
    return _time_ms(name, meaning)._replace(filled=True)


def _word(name: str, words: type[StrEnum], meaning: str) -> Column:
    return Column(name, "string", meaning, words=tuple(word.value for word in words))


def _are_rates(text: str) -> bool:
    return re.fullmatch(r"(0\.[0-9]{2}|1\.00)(;(0\.[0-9]{2}|1\.00))*", text) is not None


def _is_sampled(name: str) -> bool:
    """Return whether samples have a stage of that name: drafts one at a time, or all of them."""
    try:
        stage = Stage.parse(name)
    except ValueError:
        return False
    return stage.first == stage.last


WARM, COLD = "warm", "cold"
"""The L2 cache before a timed iteration: as the last one left it, or flushed."""

BY_DEVICE, BY_WALL = "device", "wall"
"""The clock of a step: device events (wall time on a CPU), or wall time for another engine's."""

OWN_ENGINE, UNQUANTISED, SAME, TARGETS = "cgbench", str(Quant.NONE), "same", "target"
"""What rows hold by default, and what older rows are read as.

This tool decoded. Weights are as ``dtype`` has them, and keys and values are of the same type.
Drafts are out of the target's vocabulary.
"""

LATENCY = (
    _label("model", "model label, says so where the weights are random"),
    _label("head", "draft head label, none where k = 0"),
    Column("device", "string", "cpu or cuda", words=("cpu", "cuda")),
    _label("dtype", "weights and KV"),
    _label("attention", "attention backend"),
    _label("compile", "how the forwards were compiled, or off"),
    _label("acceptance", "rule: greedy, sampled, synthetic, length or golden, with settings"),
    Column("tp_size", "int64", "GPUs that share the target", within=FROM_ONE),
    _word("mode", Mode, "what ran: graph or eager"),
    _word("scope", Scope, "what was asked: eager, phase or iteration"),
    Column("spec_tokens", "int64", "k, drafts per request per iteration", within=DRAFTS),
    Column("batch_size", "int64", "requests", within=REQUESTS),
    Column(
        "bucket", "Int64", "requests the graph holds, empty where it ran eager", within=REQUESTS
    ),
    Column("padding_frac", "float64", "(bucket - batch_size) / bucket", within=SHARE),
    Column("context_len", "int64", "committed KV rows per request when timing starts"),
    _word("status", Status, "ok, audit_failed, oom, disturbed or floor_beaten"),
    Column("iterations", "Int64", "timed iterations", within=FROM_ONE),
    _time_ms("iteration_p50_ms", "iteration latency by GPU events (wall time on CPU)"),
    _time_ms("iteration_p90_ms", "its 90th percentile"),
    _time_ms("iteration_p99_ms", "its 99th percentile"),
    Column("verify_p50_ms", "float64", "target forward, from the instrumented pass"),
    Column("accept_p50_ms", "float64", "acceptance rule, from the instrumented pass"),
    Column("draft_p50_ms", "float64", "all draft steps, from the instrumented pass"),
    Column("commit_p50_ms", "float64", "commit, from the instrumented pass"),
    Column("host_gap_p50_ms", "float64", "wall time minus GPU time of an iteration", within=SIGNED),
    Column(
        "mean_acceptance_length",
        "float64",
        "1 + accepted per iteration, 1 to k + 1, under length and golden the stated one",
        within=FROM_ONE,
    ),
    Column(
        "acceptance_rate_per_pos",
        "string",
        "unconditional, as counted, one per draft position, ';' apart",
        is_right=_are_rates,
    ),
    _time_ms("tpot_ms", "mean wall time of an iteration / mean_acceptance_length"),
    Column("output_tok_per_s", "float64", "tokens per second of the whole batch"),
    Column("speedup_vs_eager", "float64", "eager / this iteration_p50, same k and batch size"),
    Column("speedup_vs_no_spec", "float64", "output_tok_per_s / that of k = 0, same scope"),
    Column("floor_ms", "float64", "least time the iteration can take on this device"),
    Column("floor_frac", "float64", "floor_ms / iteration_p50_ms"),
    Column(
        "peak_memory_bytes",
        "Int64",
        "most device memory in use. On a CPU the process's peak",
        within=FROM_ONE,
    ),
    Column("tokens_sha256", "string", "hash of the tokens that the generate pass gave"),
    _added("l2", "string", "before each iteration: warm, or cold: flushed", WARM)._replace(
        words=(WARM, COLD)
    ),
    _added("mean_context_len", "float64", "mean KV rows per request over the timed iterations"),
    _added("blocks", "Int64", "timed blocks that count, of all processes"),
    _added("discarded_blocks", "Int64", "timed blocks that do not. blocks.csv says why"),
    _added("half_width_frac", "float64", "of the 95 % interval of the median, relative to it"),
    _added(
        "routing", "string", "how experts are chosen: model or balanced", Routing.MODEL.value
    )._replace(words=tuple(Routing)),
    _added("experts_read", "float64", "mean distinct experts per expert layer in one verify"),
    _added("engine", "string", "what decoded: cgbench, or an engine beside it", OWN_ENGINE),
    _added(
        "quant",
        "string",
        "how weights are quantised: none, the numeric mode, or engine where it is another's",
        UNQUANTISED,
    ),
    _added("kv_dtype", "string", "keys and values: same as dtype, or a type of their own", SAME),
    _added("mtp_modules", "int64", "MTP modules that draft, of those the head has", 1)._replace(
        within=FROM_ONE
    ),
    _added("draft_vocab", "string", "tokens that a draft can be: target's, or a number", TARGETS),
    _added(
        "timed_by", "string", "iteration_* are by device events (wall on CPU), or wall", BY_DEVICE
    )._replace(words=(BY_DEVICE, BY_WALL)),
    _added("gpu_busy_ms", "float64", "GPU busy a step of `cgbench peers`, from profiled steps"),
    _added("kernels_per_step", "float64", "kernels of a profiled step"),
    _added("graph_launches_per_step", "float64", "graph launches of a profiled step"),
)

LATENCY_KEY = (
    "model",
    "head",
    "dtype",
    "attention",
    "compile",
    "acceptance",
    "tp_size",
    "context_len",
    "scope",
    "spec_tokens",
    "batch_size",
    "l2",
    "routing",
    "engine",
    "quant",
    "kv_dtype",
    "mtp_modules",
    "draft_vocab",
)

CAPTURE = (
    _word("phase", Phase, "verify, draft_first, draft_rest or iteration"),
    Column("spec_tokens", "int64", "k, drafts per request per iteration", within=DRAFTS),
    Column("bucket", "int64", "requests the graph holds", within=REQUESTS),
    Column("num_tokens", "int64", "bucket * (k + 1)", within=FROM_ONE),
    _graph_ms("warmup_ms", "eager runs before the capture"),
    _graph_ms("capture_ms", "recording"),
    _graph_ms("instantiate_ms", "making the recorded graph executable"),
    _graph_ms("first_replay_ms", "first replay, upload included"),
    Column("pool_bytes", "int64", "growth of the graphs' memory pool"),
    Column("driver_bytes", "int64", "device memory that went outside the pool", within=SIGNED),
    Column("nodes", "Int64", "nodes of the graph, empty where the driver does not tell"),
    Column("break_even_replays", "float64", "iterations that pay back all graphs of the bucket"),
)

SAMPLES = (
    _word("scope", Scope, "what was asked"),
    Column("spec_tokens", "int64", "k", within=DRAFTS),
    Column("batch_size", "int64", "requests", within=REQUESTS),
    _word("mode", Mode, "what ran"),
    Column("block", "int64", "interleaved round of the measurement"),
    Column("iteration", "int64", "count over all blocks. The stages of one iteration share it"),
    Column(
        "stage",
        "string",
        "iteration (timed pass), verify, accept, draft_1.., commit, or collectives (alone, tp > 1)",
        filled=True,
        is_right=_is_sampled,
    ),
    Column("gpu_s", "float64", "by GPU events, wall time on CPU", within=SIGNED, filled=True),
    Column(
        "wall_s",
        "float64",
        "empty for the stages on CUDA, and where L2 is flushed",
        within=SECONDS,
    ),
    _added("process", "int64", "which of --processes", 0),
)

ACCEPTANCE = (
    _word("scope", Scope, "what was asked"),
    Column("spec_tokens", "int64", "k", within=DRAFTS),
    Column("batch_size", "int64", "requests", within=REQUESTS),
    Column("position", "int64", "draft position, 1 to k", within=FROM_ONE),
    Column("drafted", "int64", "active rows verified in the generate pass", within=ROWS),
    Column("accepted", "int64", "those whose draft at this position was accepted", within=ROWS),
)


class Sample(NamedTuple):
    """A ``Sample`` is one row of ``samples.parquet``: one timed iteration, or one stage of an
    instrumented one.
    """

    scope: Scope
    spec_tokens: int
    batch_size: int
    mode: Mode
    block: int
    iteration: int
    stage: Stage
    gpu_s: float
    wall_s: float | None
    process: int = 0


class TokenRow(NamedTuple):
    """A ``TokenRow`` is one line of ``tokens.jsonl``: the prompt and the tokens of one request of
    the generate pass.
    """

    scope: Scope
    mode: Mode
    spec_tokens: int
    batch_size: int
    request: int
    prompt_ids: list[int]
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A ``Cell`` is one measured cell without its timings: a row of ``latency.csv`` before the
    statistics.

    ``num_drafted`` counts the active rows of the generate pass. ``num_accepted_per_pos`` counts
    those that accepted a draft, at each of the k positions. A cell that ran out of memory has zeros
    there.
    """

    model: str
    head: str
    device: str
    dtype: str
    attention: str
    compile: str
    acceptance: str
    tp_size: int
    mode: Mode
    scope: Scope
    spec_tokens: int
    batch_size: int
    bucket: int | None
    padding_frac: float | None
    context_len: int
    status: Status
    tokens_sha256: str | None
    peak_memory_bytes: int | None
    floor_ms: float | None
    num_accepted_per_pos: tuple[int, ...]
    num_drafted: int
    l2: str = WARM
    mean_context_len: float | None = None
    discarded_blocks: int | None = None
    routing: Routing = Routing.MODEL
    experts_read: float | None = None
    engine: str = OWN_ENGINE
    quant: str = UNQUANTISED
    kv_dtype: str = SAME
    mtp_modules: int = 1
    draft_vocab: str = TARGETS
    timed_by: str = BY_DEVICE
    gpu_busy_ms: float | None = None
    kernels_per_step: float | None = None
    graph_launches_per_step: float | None = None
