"""What an iteration does to its rows between the forwards: pick tokens, accept drafts, step on.

Here in torch's operations, which are the definition, and what runs on a CPU; on CUDA each is one
kernel (``triton_rows``), where these would be ten to twenty.
"""

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels
from cgbench.kernels.row_state import ACTIVE, RowState


def argmax(logits: Tensor) -> Tensor:
    """The index of the largest of ``logits [..., V]``, of equals the first: ``[...]``."""
    if runs_kernels(logits.device):
        from cgbench.kernels import triton_rows

        return triton_rows.argmax(logits)
    return logits.argmax(-1)


def accept(rows: RowState, chosen: Tensor, rates: tuple[float, ...] | None = None) -> None:
    """Fill ``rows.out`` and ``rows.num_accepted`` from the tokens ``chosen [b, k + 1]`` that the
    target prefers.

    The leading drafts that equal them are kept; with ``rates``, those whose uniform number is below
    rate j of k, the rate of draft j + 1 given that draft j was kept, whatever they say.
    """
    if runs_kernels(chosen.device):
        from cgbench.kernels import triton_rows

        triton_rows.accept(rows, chosen, rates)
    else:
        accept_by_torch(rows, chosen, rates)


def accept_by_torch(rows: RowState, chosen: Tensor, rates: tuple[float, ...] | None) -> None:
    """``accept``, as it is defined."""
    k = rows.spec_tokens
    rows.out.copy_(chosen)
    if not k:
        rows.num_accepted.zero_()
        return
    if rates is None:
        keeps = rows.drafts == chosen[:, :-1]
    else:
        draws = rows.uniforms[rows.slot_of_row, :k]
        keeps = torch.stack([draws[:, j] < rate for j, rate in enumerate(rates)], 1)
    num_accepted = keeps.cumprod(1).sum(1)
    rows.num_accepted.copy_(num_accepted)
    if rates is not None:
        is_kept = rows.offsets[:k] < num_accepted[:, None]
        rows.out[:, :k] = torch.where(is_kept, rows.drafts, rows.out[:, :k])


def commit(rows: RowState) -> None:
    """Emit out[0..num_emitted), cut at the first EOS and at the length limit, and step on."""
    if runs_kernels(rows.last.device):
        from cgbench.kernels import triton_rows

        triton_rows.commit(rows)
    else:
        commit_by_torch(rows)


def commit_by_torch(rows: RowState) -> None:
    """``commit``, as it is defined."""
    emitted_by_accept = rows.num_accepted + 1
    is_eos = (rows.out[:, :, None] == rows.eos_ids).any(-1)
    end = rows.spec_tokens + 1
    first_eos = torch.where(is_eos, rows.offsets, end).amin(1)
    limit = torch.minimum(torch.minimum(emitted_by_accept, first_eos + 1), rows.tokens_left)
    num_emitted = limit * rows.active
    rows.num_emitted.copy_(num_emitted)
    rows.last.copy_(rows.out.gather(1, rows.num_accepted[:, None])[:, 0])
    rows.seq_len.add_(num_emitted)
    rows.tokens_left.sub_(num_emitted)
    goes_on = (first_eos >= num_emitted) & (rows.tokens_left > 0) & (rows.active > 0)
    rows.active.copy_(goes_on)
    # The host learns of the end one iteration later: until then the row must not write to a slot
    # that may be another request's by now.
    rows.slot_of_row.copy_(torch.where(goes_on, rows.slot_of_row, rows.scratch_slot))
    rows.result[:, ACTIVE].copy_(rows.active)
