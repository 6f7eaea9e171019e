"""Compute ``draft_block`` as one Triton kernel, with a program for each request."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.row_updates import NUM_ACCEPTED, OUT, RowState
from cgbench.kernels.windows.draft_block import DraftBlock

_NUM_ACCEPTED = tl.constexpr(NUM_ACCEPTED)
_OUT = tl.constexpr(OUT)


@triton.jit(do_not_specialize=["room", "result_stride"])  # type: ignore[untyped-decorator]
def _block_kernel(
    seq_len,
    result,
    mask_token,
    tokens,
    positions,
    room,
    result_stride,
    QUERY_LEN: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    b = tl.program_id(0)
    of_row = result + b * result_stride
    accepted = tl.load(of_row + _NUM_ACCEPTED)
    newest = tl.load(of_row + _OUT + accepted)
    start = tl.minimum(tl.load(seq_len + b) + accepted + 1, room - QUERY_LEN)
    n = tl.arange(0, BLOCK)
    inside = n < QUERY_LEN
    token = tl.where(n == 0, newest, tl.load(mask_token))
    tl.store(tokens + b * QUERY_LEN + n, token, mask=inside)
    tl.store(positions + b * QUERY_LEN + n, start + n, mask=inside)


def draft_block(rows: RowState, mask_token: Tensor, room: int) -> DraftBlock:
    """Compute ``draft_block.draft_block`` in one kernel."""
    query_len, device = rows.spec_tokens + 1, rows.last.device
    tokens = torch.empty(rows.batch_size, query_len, dtype=torch.long, device=device)
    block = DraftBlock(tokens, torch.empty_like(tokens))
    _block_kernel[(rows.batch_size,)](
        rows.seq_len,
        rows.result,
        mask_token,
        *block,
        room,
        rows.result.stride(0),
        QUERY_LEN=query_len,
        BLOCK=triton.next_power_of_2(query_len),
        EARLY=early(device),
        num_warps=1,
        **launch_keywords(device),
    )
    return block
