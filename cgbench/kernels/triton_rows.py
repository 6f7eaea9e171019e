"""Pick tokens, accept and commit between an iteration's forwards, in one Triton kernel each.

In torch's operations these steps are forty kernels of a microsecond or two each, whatever the
batch. ``row_updates`` defines what they compute.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.counters import arrivals
from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.row_updates import ACTIVE, NUM_ACCEPTED, NUM_EMITTED, OUT, RowState

COLUMNS_A_STEP = 2048
"""A program reads this many logits at a time, and is started for no fewer."""

PROGRAMS = 1024
"""Rows of logits are split until about this many programs read them.

These are eight a multiprocessor of an H200. With 4 KiB under way in each, that is as much as its
memory wants.
"""

MAX_ROWS = 1 << 14
"""A call that splits rows takes at most this many rows of logits: k + 1 of every request."""

# It stands for a masked token. No end-of-sequence id equals it, because ``NO_TOKEN`` fills unused
# ids.
_NOT_A_TOKEN = tl.constexpr(-2)
_NUM_EMITTED = tl.constexpr(NUM_EMITTED)
_NUM_ACCEPTED = tl.constexpr(NUM_ACCEPTED)
_ACTIVE = tl.constexpr(ACTIVE)
_OUT = tl.constexpr(OUT)
_FAR = tl.constexpr(1 << 30)


@triton.jit(do_not_specialize=["num_columns", "row_stride", "columns_each"])  # type: ignore[untyped-decorator]
def _argmax_kernel(
    logits,
    out,
    part_value,
    part_index,
    arrived,
    num_columns,
    row_stride,
    columns_each,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    part = tl.program_id(1)
    low = part * columns_each
    high = tl.minimum(low + columns_each, num_columns)
    lane = tl.arange(0, STEP)
    best = tl.full([STEP], float("-inf"), tl.float32)
    where = tl.zeros([STEP], tl.int32) + low
    from_row = logits + row.to(tl.int64) * row_stride
    for first in range(low, high, STEP):
        column = first + lane
        value = tl.load(from_row + column, mask=column < high, other=float("-inf"))
        value = value.to(tl.float32)
        # As in torch, a NaN is larger than any number.
        value = tl.where(value != value, float("inf"), value)
        is_better = value > best
        where = tl.where(is_better, column, where)
        best = tl.where(is_better, value, best)
    value = tl.max(best, 0)
    index = tl.min(tl.where(best == value, where, _FAR), 0)
    if PARTS == 1:
        tl.store(out + row, index.to(tl.int64))
        return
    tl.store(part_value + row * PARTS + part, value)
    tl.store(part_index + row * PARTS + part, index)
    # Both are stored before this program's arrival is counted.
    tl.debug_barrier()
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == PARTS - 1:
        each = tl.arange(0, PARTS)
        values = tl.load(part_value + row * PARTS + each, cache_modifier=".cg")
        indices = tl.load(part_index + row * PARTS + each, cache_modifier=".cg")
        # The lowest index is the first of equals, because the parts are in order.
        index = tl.min(tl.where(values == tl.max(values, 0), indices, _FAR), 0)
        tl.store(out + row, index.to(tl.int64))
        tl.store(arrived + row, 0)


@triton.jit(do_not_specialize=["drafts_stride", "result_stride", "uniforms_stride"])  # type: ignore[untyped-decorator]
def _accept_kernel(
    chosen,
    drafts,
    result,
    slot_of_row,
    uniforms,
    rates,
    drafts_stride,
    result_stride,
    uniforms_stride,
    SPEC_TOKENS: tl.constexpr,
    BY_RATES: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    is_draft = j < SPEC_TOKENS
    is_out = j <= SPEC_TOKENS
    out = tl.load(chosen + row * (SPEC_TOKENS + 1) + j, mask=is_out, other=0)
    draft = tl.load(drafts + row * drafts_stride + j, mask=is_draft, other=0)
    if BY_RATES:
        slot = tl.load(slot_of_row + row)
        drawn = tl.load(uniforms + slot * uniforms_stride + j, mask=is_draft, other=1.0)
        keeps = drawn < tl.load(rates + j, mask=is_draft, other=0.0)
    else:
        keeps = draft == out
    # The first draft that is not kept ends them. The column after the drafts is never kept.
    num_accepted = tl.min(tl.where(keeps & is_draft, _FAR, tl.minimum(j, SPEC_TOKENS)), 0)
    if BY_RATES:
        out = tl.where(j < num_accepted, draft, out)
    to_row = result + row * result_stride
    tl.store(to_row + _OUT + j, out, mask=is_out)
    tl.store(to_row + _NUM_ACCEPTED, num_accepted.to(tl.int64))


@triton.jit(do_not_specialize=["result_stride"])  # type: ignore[untyped-decorator]
def _commit_kernel(
    last,
    seq_len,
    slot_of_row,
    active,
    tokens_left,
    result,
    eos_ids,
    scratch_slot,
    result_stride,
    NUM_OUT: tl.constexpr,
    NUM_EOS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_EOS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    e = tl.arange(0, BLOCK_EOS)
    of_row = result + row * result_stride
    out = tl.load(of_row + _OUT + j, mask=j < NUM_OUT, other=_NOT_A_TOKEN)
    eos = tl.load(eos_ids + e, mask=e < NUM_EOS, other=-1)
    num_accepted = tl.load(of_row + _NUM_ACCEPTED)
    left = tl.load(tokens_left + row)
    was_active = tl.load(active + row)
    is_eos = tl.max((out[:, None] == eos[None, :]).to(tl.int32), 1) > 0
    first_eos = tl.min(tl.where(is_eos, j, NUM_OUT), 0).to(tl.int64)
    limit = tl.minimum(tl.minimum(num_accepted + 1, first_eos + 1), left)
    num_emitted = limit * was_active
    goes_on = (first_eos >= num_emitted) & (left > num_emitted) & (was_active > 0)
    tl.store(of_row + _NUM_EMITTED, num_emitted)
    tl.store(of_row + _ACTIVE, goes_on.to(tl.int64))
    tl.store(active + row, goes_on.to(tl.int64))
    tl.store(last + row, tl.sum(tl.where(j == num_accepted, out, 0), 0))
    tl.store(seq_len + row, tl.load(seq_len + row) + num_emitted)
    tl.store(tokens_left + row, left - num_emitted)
    slot = tl.load(slot_of_row + row)
    tl.store(slot_of_row + row, tl.where(goes_on, slot, tl.load(scratch_slot)))


def argmax(logits: Tensor) -> Tensor:
    """Return the index ``[...]`` of the largest of ``logits [..., V]``, the first of equals."""
    rows = logits.reshape(-1, logits.shape[-1])
    num_rows, num_columns = rows.shape
    parts = _num_parts(num_rows, num_columns)
    assert rows.stride(1) == 1 and (parts == 1 or num_rows <= MAX_ROWS)
    out = torch.empty(num_rows, dtype=torch.long, device=logits.device)
    shape = (num_rows if parts > 1 else 0, parts)
    values = torch.empty(shape, dtype=torch.float32, device=logits.device)
    indices = torch.empty(shape, dtype=torch.int32, device=logits.device)
    _argmax_kernel[(num_rows, parts)](
        rows,
        out,
        values,
        indices,
        arrivals("argmax", MAX_ROWS, logits.device),
        num_columns,
        rows.stride(0),
        triton.cdiv(num_columns, parts),
        PARTS=parts,
        STEP=COLUMNS_A_STEP,
        EARLY=early(logits.device),
        **launch_keywords(logits.device),
    )
    return out.view(logits.shape[:-1])


def accept(rows: RowState, chosen: Tensor, rates: tuple[float, ...] | None) -> None:
    """Compute ``row_updates.accept`` in one kernel."""
    k = rows.spec_tokens
    chosen = chosen.contiguous()
    device = chosen.device
    _accept_kernel[(rows.batch_size,)](
        chosen,
        rows.drafts,
        rows.result,
        rows.slot_of_row,
        rows.uniforms,
        chosen if rates is None else _constants(rates, device),
        rows.drafts.stride(0),
        rows.result.stride(0),
        rows.uniforms.stride(0),
        SPEC_TOKENS=k,
        BY_RATES=rates is not None,
        BLOCK=triton.next_power_of_2(k + 1),
        EARLY=early(device),
        num_warps=1,
        **launch_keywords(device),
    )


def commit(rows: RowState) -> None:
    """Compute ``row_updates.commit`` in one kernel."""
    num_out, num_eos = rows.spec_tokens + 1, rows.eos_ids.shape[0]
    device = rows.last.device
    _commit_kernel[(rows.batch_size,)](
        rows.last,
        rows.seq_len,
        rows.slot_of_row,
        rows.active,
        rows.tokens_left,
        rows.result,
        rows.eos_ids,
        rows.scratch_slot,
        rows.result.stride(0),
        NUM_OUT=num_out,
        NUM_EOS=num_eos,
        BLOCK=triton.next_power_of_2(num_out),
        BLOCK_EOS=triton.next_power_of_2(num_eos),
        EARLY=early(device),
        num_warps=1,
        **launch_keywords(device),
    )


def _num_parts(num_rows: int, num_columns: int) -> int:
    """Return a power of two, because one program reads the best of all parts in one go."""
    wanted = min(PROGRAMS // num_rows, num_columns // COLUMNS_A_STEP)
    return 1 << (max(1, wanted).bit_length() - 1)


@functools.cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Put ``values`` on the device once and for ever, as ``arrivals`` does.

    A capture's warm-up makes them, before the capture.
    """
    return torch.tensor(values, dtype=torch.float32, device=device)
