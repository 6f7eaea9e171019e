"""Compute ``module_window`` as one Triton kernel, with a program for each row of the window."""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.row_updates import NUM_ACCEPTED, OUT, RowState
from cgbench.kernels.windows.module_window import ModuleWindow

ELEMENTS_AT_ONCE = 2048
"""Of a hidden state, that a program copies in one go."""

_NUM_ACCEPTED = tl.constexpr(NUM_ACCEPTED)
_OUT = tl.constexpr(OUT)


@triton.jit(do_not_specialize=["fed_stride", "result_stride"])  # type: ignore[untyped-decorator]
def _window_kernel(
    seq_len,
    slot_of_row,
    result,
    drafts,
    fed,
    carry,
    tokens,
    positions,
    hidden,
    newest,
    result_stride,
    drafts_stride,
    fed_stride,
    STEP: tl.constexpr,
    SPEC_TOKENS: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0)
    number = tl.program_id(1)
    length = tl.load(seq_len + b)
    slot = tl.load(slot_of_row + b)
    of_row = result + b * result_stride
    accepted = tl.load(of_row + _NUM_ACCEPTED)
    moved = tl.maximum(STEP - 1 - length, 0)
    before = tl.maximum(STEP - 2 - length, 0)

    place = number + moved
    certain = tl.load(of_row + _OUT + tl.minimum(place, SPEC_TOKENS))
    last = tl.minimum(tl.maximum(place - accepted - 1, 0), SPEC_TOKENS - 1)
    drafted = tl.load(drafts + b * drafts_stride + last)
    tl.store(tokens + b * NUM_ROWS + number, tl.where(place <= accepted, certain, drafted))
    tl.store(positions + b * NUM_ROWS + number, length - (STEP - 1) + moved + number)

    # Row 0 of what is fed is the carry, the others are of the module before.
    source = tl.minimum(number + moved - before, NUM_ROWS - 1)
    of_fed = fed + b.to(tl.int64) * fed_stride
    of_carry = carry + slot * SIZE
    from_row = of_fed + tl.maximum(source - 1, 0) * SIZE
    to_row = hidden + (b.to(tl.int64) * NUM_ROWS + number) * SIZE
    from_certain = of_fed + tl.maximum(accepted - before, 0) * SIZE
    for first in range(0, SIZE, BLOCK):
        d = first + tl.arange(0, BLOCK)
        inside = d < SIZE
        carried = tl.load(of_carry + d, mask=inside & (source == 0), other=0.0)
        made = tl.load(from_row + d, mask=inside & (source > 0), other=0.0)
        tl.store(to_row + d, tl.where(source == 0, carried, made), mask=inside)
        if number == 0:
            # No other program reads the carry, which this one has read by now.
            tl.store(of_carry + d, tl.load(from_certain + d, mask=inside), mask=inside)
    if number == 0:
        tl.store(newest + b, accepted + (STEP - 1) - moved)


def module_window(rows: RowState, step: int) -> ModuleWindow:
    """Compute ``module_window.module_window`` in one kernel."""
    batch, num_rows, size = rows.batch_size, rows.spec_tokens + step, rows.fed.shape[2]
    device = rows.last.device
    tokens = torch.empty(batch, num_rows, dtype=torch.long, device=device)
    window = ModuleWindow(
        tokens=tokens,
        positions=torch.empty_like(tokens),
        hidden=torch.empty(batch, num_rows, size, dtype=rows.fed.dtype, device=device),
        newest=torch.empty(batch, dtype=torch.long, device=device),
    )
    carry = rows.carries[step - 2]
    assert rows.fed.stride()[1:] == (size, 1) and carry.is_contiguous()
    _window_kernel[(batch, num_rows)](
        rows.seq_len,
        rows.slot_of_row,
        rows.result,
        rows.drafts,
        rows.fed,
        carry,
        *window,
        rows.result.stride(0),
        rows.drafts.stride(0),
        rows.fed.stride(0),
        STEP=step,
        SPEC_TOKENS=rows.spec_tokens,
        NUM_ROWS=num_rows,
        SIZE=size,
        BLOCK=min(ELEMENTS_AT_ONCE, triton.next_power_of_2(size)),
        EARLY=early(device),
        num_warps=4,
        **launch_keywords(device),
    )
    return window
