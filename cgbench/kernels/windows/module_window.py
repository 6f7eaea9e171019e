"""Prepare the rows that a module past a head's first computes in its draft step.

Torch's operations here are the definition, and run on a CPU. They would be thirty kernels. On
CUDA one kernel does the same (``triton_window``).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.row_updates import RowState


class ModuleWindow(NamedTuple):
    """A window holds R = k + step rows a request, and what a module is fed there.

    It has ``tokens`` and ``positions [b, R]`` and ``hidden [b, R, H]``. ``newest [b]`` is the row
    that the draft comes of.
    """

    tokens: Tensor
    positions: Tensor
    hidden: Tensor
    newest: Tensor


def module_window(rows: RowState, step: int) -> ModuleWindow:
    """Return what the module of draft ``step`` is fed, and renew its carry. Steps begin at 2.

    Its rows go from ``seq_len - (step - 1)`` to ``seq_len + k``. They are moved up to position 0
    if they would begin before it. Row i has token i + step. Its hidden state is of
    ``rows.fed``, and of the module's carry for the row before those. The next iteration begins
    behind this one's newest certain token, and so does the new carry.
    """
    if runs_kernels(rows.last.device):
        from cgbench.kernels.windows import triton_window

        return triton_window.module_window(rows, step)
    return module_window_by_torch(rows, step)


def module_window_by_torch(rows: RowState, step: int) -> ModuleWindow:
    """Compute ``module_window`` in torch, as it is defined."""
    num_rows = rows.spec_tokens + step
    before, moved = num_moved(rows.seq_len, step - 1), num_moved(rows.seq_len, step)
    source, carry = rows.fed[:, : num_rows - 1], rows.carries[step - 2]
    number = torch.arange(num_rows, device=moved.device)
    with_carry = torch.cat([carry[rows.slot_of_row][:, None], source], dim=1)
    hidden = _rows_of(with_carry, (number + (moved - before)[:, None]).clamp(max=num_rows - 1))
    certain = _rows_of(source, (rows.num_accepted - before).clamp(min=0)[:, None])
    carry.index_copy_(0, rows.slot_of_row, certain[:, 0])
    return ModuleWindow(
        tokens=following(rows, number + moved[:, None]),
        positions=(rows.seq_len - (step - 1) + moved)[:, None] + number,
        hidden=hidden,
        newest=rows.num_accepted + (step - 1) - moved,
    )


def num_moved(seq_len: Tensor, step: int) -> Tensor:
    """Return how many rows of the window of draft ``step`` would lie before position 0."""
    return (step - 1 - seq_len).clamp(min=0)


def following(rows: RowState, index: Tensor) -> Tensor:
    """Return the tokens at ``index [b, R]`` of those that follow position ``seq_len``.

    They are the accepted drafts, the token after them, and then the new drafts. Past those made
    any valid token stands.
    """
    k, accepted = rows.spec_tokens, rows.num_accepted[:, None]
    certain = rows.out.gather(1, index.clamp(max=k))
    drafted = rows.drafts.gather(1, (index - accepted - 1).clamp(0, k - 1))
    return torch.where(index <= accepted, certain, drafted)


def _rows_of(hidden: Tensor, index: Tensor) -> Tensor:
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
