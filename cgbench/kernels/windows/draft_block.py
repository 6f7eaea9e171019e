"""Prepare the block of positions that a parallel drafter makes all drafts of.

Torch's operations here are the definition, and run on a CPU. On CUDA one kernel does the same
(``triton_block``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.row_updates import RowState


class DraftBlock(NamedTuple):
    """A draft block holds ``tokens`` and ``positions [b, k + 1]`` of each request.

    The first is its newest token. The mask token follows, once for each draft.
    """

    tokens: Tensor
    positions: Tensor


def draft_block(rows: RowState, mask_token: Tensor, room: int) -> DraftBlock:
    """Return the block after this iteration's newest token, which is ``out[num_accepted]``.

    ``mask_token [1]`` stands for each draft. A slot has ``room`` rows. A request that has ended may
    be so long that its block would end past them. Nobody reads such a block, and it is moved down.
    """
    if runs_kernels(rows.last.device):
        from cgbench.kernels.windows import triton_block

        return triton_block.draft_block(rows, mask_token, room)
    return draft_block_by_torch(rows, mask_token, room)


def draft_block_by_torch(rows: RowState, mask_token: Tensor, room: int) -> DraftBlock:
    """Compute ``draft_block`` in torch, as it is defined."""
    newest = rows.out.gather(1, rows.num_accepted[:, None])
    masks = mask_token.expand(rows.batch_size, rows.spec_tokens)
    start = (rows.seq_len + rows.num_accepted + 1).clamp(max=room - 1 - rows.spec_tokens)
    return DraftBlock(torch.cat([newest, masks], dim=1), start[:, None] + rows.offsets)
