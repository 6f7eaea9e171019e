"""The checks share this: requests put in rows, steps, and the state between two of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cgbench.checks.findings import (
    Difference,
    Finding,
    Where,
    first_of,
    holds,
    not_run,
    wrong,
)
from cgbench.checks.hints import HintedRunner
from cgbench.checks.poison import fill
from cgbench.checks.subject import Subject
from cgbench.engine.generation import generate
from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import Runner
from cgbench.engine.state import UNLIMITED_TOKENS, DecodeState, Prefilled
from cgbench.kernels.row_updates import RowState
from cgbench.words import Mode, Scope

PREFILL_TOKENS = 2048

# A check takes this many steps from one prefill if it looks at every one of them. Any run has room
# for twice as many, however many drafts are accepted.
STEPS = 4

# This many KV layers are copied and compared. All of a large model's would not fit beside it.
WATCHED_LAYERS = 4

Prompts = Sequence[Sequence[int]]

BUFFERS = (
    "last",
    "drafts",
    "seq_len",
    "slot_of_row",
    "active",
    "tokens_left",
    "hidden",
    "chain",
    "result",
    "eos_ids",
    "carries",
)


def conclude(
    subject: Subject,
    check: str,
    differences: Iterator[Difference],
    figures: Mapping[str, Any],
    lacking: str | None = None,
) -> Finding:
    """Return the check's finding: its first difference if there is one. ``figures`` are read after
    the differences.

    ``lacking`` explains why there is nothing to try the check on here. Then it is not run, unless
    it found a difference.
    """
    with torch.inference_mode():
        difference = first_of(differences, subject.ranks)
    if difference is not None:
        return wrong(check, difference, **figures)
    return holds(check, **figures) if lacking is None else not_run(check, lacking, **figures)


class BucketRunner:
    """A ``BucketRunner`` runs eager over a whole bucket, padded rows included. It is the very code
    that a graph captures.
    """

    scope = Scope.EAGER

    def __init__(self, subject: Subject, k: int) -> None:
        self.subject = subject
        self.state = subject.states[k]

    def num_rows(self, batch_size: int) -> int:
        return self.subject.bucket_of(self.state.spec_tokens, batch_size)

    def mode(self, batch_size: int) -> Mode:
        return Mode.EAGER

    def step(self, batch_size: int) -> None:
        iteration(self.subject.spec, self.state.rows(self.num_rows(batch_size)))


def graph_runners(subject: Subject, k: int) -> list[Runner]:
    """Return the runners that replay graphs, one a scope."""
    keys = [key for key in subject.graph_sets if key[0] == k]
    return [subject.runners[key] for key in keys]


def padded_runners(subject: Subject, k: int) -> list[Runner]:
    """Return every runner that pads: each graph scope, or eager over the bucket if there are no
    graphs.

    If there are graphs, eager runs without padding, as it is measured. ``parity`` compares them
    with eager over the bucket.
    """
    return graph_runners(subject, k) or [BucketRunner(subject, k)]


def tile(prompts: Prompts, batch_size: int) -> list[list[int]]:
    """Return ``batch_size`` prompts, repeated in their order."""
    return [list(prompts[i % len(prompts)]) for i in range(batch_size)]


def prefill_prompts(subject: Subject, prompts: Prompts) -> Prefilled:
    """Prefill the prompts, request i in slot i."""
    return prefill(subject.spec, [list(prompt) for prompt in prompts], PREFILL_TOKENS)


def first_rows(prefilled: Prefilled, batch_size: int) -> Prefilled:
    """Return the first requests of a prefill. Their KV is where it was, because request i has slot
    i.
    """
    block_out, fed, carries = prefilled.block_out, prefilled.fed, prefilled.carries
    return Prefilled(
        last=prefilled.last[:batch_size],
        seq_len=prefilled.seq_len[:batch_size],
        block_out=None if block_out is None else block_out[:batch_size],
        fed=None if fed is None else fed[:batch_size],
        carries=None if carries is None else carries[:, :batch_size],
    )


def begin(
    subject: Subject,
    state: DecodeState,
    prefilled: Prefilled,
    *,
    tokens_left: int = UNLIMITED_TOKENS,
    ignore_eos: bool = True,
) -> None:
    """Put the prefilled requests in the state's rows, ready for their first iteration."""
    begin_decoding(subject.spec, state, prefilled, tokens_left=tokens_left, ignore_eos=ignore_eos)


def decode(
    subject: Subject, runner: Runner, prefilled: Prefilled, max_new_tokens: int
) -> list[list[int]]:
    """Return each request's ``max_new_tokens`` tokens. The loop is the one that serves, with
    re-packing and all.
    """
    begin(subject, runner.state, prefilled, tokens_left=max_new_tokens - 1)
    return generate(runner, prefilled.last.tolist()).token_ids


@dataclass
class Trajectory:
    """A ``Trajectory`` holds requests that are decoded step by step. ``sequences[i]`` are row i's
    tokens, its prompt's first.
    """

    runner: Runner
    batch_size: int
    sequences: list[list[int]] = field(default_factory=list)

    @property
    def rows(self) -> RowState:
        """Return the requests' rows, without padding."""
        return self.runner.state.rows(self.batch_size)

    def step(self) -> None:
        """Run one iteration, and append the tokens that it emits."""
        self.runner.step(self.batch_size)
        rows = self.rows
        for i, emitted in enumerate(rows.num_emitted.tolist()):
            self.sequences[i] += rows.out[i, :emitted].tolist()


def start(subject: Subject, runner: Runner, prompts: Prompts) -> Trajectory:
    """Put ``prompts``, which are the subject's, in the runner's rows, with no limit and no EOS.
    Their iterations are hinted.
    """
    prefilled = prefill_prompts(subject, prompts)
    begin(subject, runner.state, prefilled)
    sequences = [[*p, last] for p, last in zip(prompts, prefilled.last.tolist(), strict=True)]
    return Trajectory(HintedRunner(subject, runner), len(prompts), sequences)


Snapshot = dict[str, Tensor]
"""Copies of a state's buffers, by name."""


def snapshot(state: DecodeState) -> Snapshot:
    """Return copies of the state's buffers."""
    return {name: getattr(state.full, name).clone() for name in BUFFERS}


def restore(state: DecodeState, before: Snapshot) -> None:
    """Write the copies back to the state's buffers."""
    for name, values in before.items():
        getattr(state.full, name).copy_(values)


def bits(tensor: Tensor) -> Tensor:
    """Return the tensor's bits as integers, so that a NaN equals itself."""
    if not tensor.is_floating_point():
        return tensor
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32}
    return tensor.contiguous().view(integers[tensor.element_size()])


def first_unequal(
    got: Snapshot, expected: Snapshot, batch_size: int, names: Iterable[str]
) -> tuple[str, int] | None:
    """Return the first buffer that differs by a bit in a real row, and that row. Return None if
    none does.
    """
    for name in names:
        differs = bits(got[name][:batch_size]) != bits(expected[name][:batch_size])
        differs = differs.view(batch_size, -1).any(1)
        if differs.any():
            return name, int(differs.nonzero()[0, 0])
    return None


def where_of(
    runner: Runner, batch_size: int, row: int | None = None, position: int | None = None
) -> Where:
    """Return the place of a difference in one of a runner's iterations."""
    return Where(
        scope=runner.scope,
        spec_tokens=runner.state.spec_tokens,
        bucket=runner.num_rows(batch_size),
        batch_size=batch_size,
        row=row,
        position=position,
    )


def watched_layers(subject: Subject, k: int) -> list[int]:
    """Return the KV layers that are compared: the first, some between, and the last, which is the
    head's. At k = 0 the head does not run, so its layers are left out.
    """
    layers = subject.spec.cache.layers
    names = sorted(name for name in layers if k or name not in head_layers(subject))
    if len(names) > WATCHED_LAYERS:
        last = len(names) - 1
        picks = [round(i * last / (WATCHED_LAYERS - 1)) for i in range(WATCHED_LAYERS)]
        names = [names[i] for i in picks]
    return names


def head_layers(subject: Subject) -> range:
    """Return the numbers of the KV layers of the head's modules."""
    head = subject.spec.head
    return range(0) if head is None else head.layer_numbers


def rows_remade(subject: Subject, layer_idx: int) -> int:
    """Return how many rows below seq_len an iteration computes again in a layer.

    They are those of a module past the first that were computed with drafts. A parallel drafter's
    layers have none.
    """
    if subject.spec.is_parallel:
        return 0
    return max(0, layer_idx - subject.spec.target.num_layers)


def by_slot(subject: Subject, layer_idx: int) -> dict[str, Tensor]:
    """Return what a layer keeps of each token, by name, as ``[num_slots, room, H, D]``."""
    cache = subject.spec.cache
    return cache.layers[layer_idx].of_slots(cache.num_slots)


def fill_where(subject: Subject, mask: Tensor, value: float) -> None:
    """Fill the KV rows, of every layer, that ``mask [num_slots, room]`` marks."""
    for layer_idx in subject.spec.cache.layers:
        for tensor in by_slot(subject, layer_idx).values():
            fill(tensor, value, mask[:, :, None, None])


def copy_watched(subject: Subject, k: int) -> dict[tuple[int, str], Tensor]:
    """Return copies of the watched layers' keys and values, ``[num_slots, room, H, D]``.

    The scales of FP8 ones are among them. Latents have no values of their own.
    """
    return {
        (layer_idx, name): tensor.clone()
        for layer_idx in watched_layers(subject, k)
        for name, tensor in by_slot(subject, layer_idx).items()
        if tensor.numel()
    }


def unequal_kv(
    subject: Subject,
    before: dict[tuple[int, str], Tensor],
    watched: Tensor | Callable[[int], Tensor],
) -> tuple[int, int, int] | None:
    """Return the first (layer, slot, KV row) among ``watched [num_slots, room]`` that differs from
    ``before`` by a bit, or None. ``watched`` is of all layers, or a function of a layer's number.
    """
    for (layer_idx, name), old in before.items():
        new = by_slot(subject, layer_idx)[name]
        of_layer = watched if isinstance(watched, Tensor) else watched(layer_idx)
        changed = (bits(new) != bits(old)).flatten(2).any(-1) & of_layer
        if changed.any():
            slot, row = changed.nonzero()[0].tolist()
            return layer_idx, slot, row
    return None


def committed_rows(subject: Subject, rows: RowState) -> Tensor:
    """Return ``[num_slots, room]``, true at the KV rows below seq_len in the rows' slots."""
    return _rows_between(subject, rows, torch.zeros_like(rows.seq_len), rows.seq_len)


def fill_remade(subject: Subject, rows: RowState, value: float) -> None:
    """Fill the KV rows below seq_len, in the rows' slots, that an iteration computes again."""
    for layer_idx in head_layers(subject):
        first = rows.seq_len - rows_remade(subject, layer_idx)
        mask = _rows_between(subject, rows, first, rows.seq_len)
        for tensor in by_slot(subject, layer_idx).values():
            fill(tensor, value, mask[:, :, None, None])


def rows_past(subject: Subject, rows: RowState) -> Tensor:
    """Return ``[num_slots, room]``, true at the KV rows at seq_len and above in the rows' slots."""
    room = torch.full_like(rows.seq_len, subject.spec.cache.room)
    return _rows_between(subject, rows, rows.seq_len, room)


def write_window(subject: Subject, rows: RowState, layer_idx: int = 0) -> Tensor:
    """Return ``[num_slots, room]``, true at the KV rows that an iteration may write in a layer.

    In each live row's own slot these are k + 1 verified rows and those that the draft steps write
    past them, and ``rows_remade`` before them. A parallel drafter's block ends k + 1 rows past the
    newest verified one. The whole scratch slot may be written too.
    """
    k = rows.spec_tokens
    is_block = subject.spec.is_parallel and k and layer_idx in head_layers(subject)
    length = (2 * (k + 1) if is_block else max(k + 1, 2 * k)) * rows.active
    first = rows.seq_len - rows_remade(subject, layer_idx) * rows.active
    window = _rows_between(subject, rows, first, rows.seq_len + length)
    window[subject.spec.cache.scratch_slot] = True
    return window


def _rows_between(subject: Subject, rows: RowState, first: Tensor, end: Tensor) -> Tensor:
    cache = subject.spec.cache
    positions = torch.arange(cache.room, device=rows.seq_len.device)
    inside = (positions >= first[:, None]) & (positions < end[:, None])
    mask = torch.zeros(cache.num_slots, cache.room, dtype=torch.bool, device=inside.device)
    mask[rows.slot_of_row] = inside
    return mask
