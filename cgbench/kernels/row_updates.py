"""Update the rows of a batch between an iteration's forwards.

An iteration picks tokens, accepts drafts and steps on. Torch's operations here are the definition,
and they run on a CPU. On CUDA each update is one kernel (``triton_rows``), where these would be ten
to twenty.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cgbench.kernels.gpu import runs_kernels

# Columns of ``result`` before the k + 1 output tokens.
NUM_EMITTED, NUM_ACCEPTED, ACTIVE, OUT = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class RowState:
    """A row state is the buffers of the first b rows of a batch.

    Integers are int64, as embedding and indexing take them. The buffers are:

    - ``last [b]``: the newest token, whose KV is not yet written.
    - ``drafts [b, k]``: the drafts that the next verify reads.
    - ``seq_len [b]``: committed KV rows, of target and head alike.
    - ``slot_of_row [b]``: the request's slot, or the scratch slot once it has ended.
    - ``active [b]``: 1 while the request decodes.
    - ``tokens_left [b]``: tokens still to emit.
    - ``hidden [b, k + 1, H]``: verify's hidden states, in the form that the head takes. For an
      EAGLE-3 head they are three side by side.
    - ``chain [b, 1, H]``: the head's own hidden state, for the next draft step.
    - ``result [b, k + 4]``: all that the host reads, in one copy. Its columns are num_emitted,
      num_accepted, active after, and the k + 1 tokens of ``out``.
    """

    last: Tensor
    drafts: Tensor
    seq_len: Tensor
    slot_of_row: Tensor
    active: Tensor
    tokens_left: Tensor
    hidden: Tensor
    chain: Tensor
    result: Tensor
    eos_ids: Tensor
    offsets: Tensor
    """These are 0..k. All rows share them, as they do ``eos_ids``."""
    scratch_slot: Tensor
    """This is the slot that padded and finished rows write to, ``[]``. All rows share it."""
    uniforms: Tensor
    """These random numbers in [0, 1) are for the acceptance rule, ``[slots, 2k + 1]``.

    A request has k for the tests of the drafts, one for the token after them, and k for drawing
    drafts. All rows share the tensor, because a slot is a request.
    """
    draft_probs: Tensor
    """Draft j + 1 was drawn from row j of these, ``[slots, k + 1, V]`` in float32.

    If the rule draws no drafts, V is 0. Row k stays zero, because nothing was drafted there. It is
    by slot, so that re-packing moves none of it. The rule picks rows by index in any case.
    """
    fed: Tensor
    """``[b, k + m, H]``: the hidden states that the next module is fed, of the rows that the one
    before it computed. m counts the MTP modules that draft. If that is one, there are no columns.
    """
    carries: Tensor
    """``[m - 1, slots, H]``: of what each module past the first is fed, the row before ``fed``'s
    first. It is by slot, as ``draft_probs`` is.
    """

    @property
    def batch_size(self) -> int:
        """Return the number of rows, padding included."""
        return self.last.shape[0]

    @property
    def spec_tokens(self) -> int:
        """Return k."""
        return self.drafts.shape[1]

    @property
    def out(self) -> Tensor:
        """Return the accepted drafts, and after them the bonus or recovered token,
        ``[b, k + 1]``."""
        return self.result[:, OUT:]

    @property
    def num_accepted(self) -> Tensor:
        """Return how many drafts were kept, 0..k, ``[b]``."""
        return self.result[:, NUM_ACCEPTED]

    @property
    def num_emitted(self) -> Tensor:
        """Return how many tokens this iteration added, 0..k + 1, ``[b]``."""
        return self.result[:, NUM_EMITTED]


def argmax(logits: Tensor) -> Tensor:
    """Return the index ``[...]`` of the largest of ``logits [..., V]``, the first of equals."""
    if runs_kernels(logits.device):
        from cgbench.kernels import triton_rows

        return triton_rows.argmax(logits)
    return logits.argmax(-1)


def accept(rows: RowState, chosen: Tensor, rates: tuple[float, ...] | None = None) -> None:
    """Fill ``rows.out`` and ``rows.num_accepted`` from the target's tokens ``chosen [b, k + 1]``.

    The leading drafts that equal them are kept. With ``rates`` the tokens of the drafts do not
    matter. Then draft j + 1 is kept if its uniform number is below ``rates[j]``, the rate given
    that draft j was kept.
    """
    if runs_kernels(chosen.device):
        from cgbench.kernels import triton_rows

        triton_rows.accept(rows, chosen, rates)
    else:
        accept_by_torch(rows, chosen, rates)


def accept_by_torch(rows: RowState, chosen: Tensor, rates: tuple[float, ...] | None) -> None:
    """Compute ``accept`` in torch's operations, which define it."""
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
    """Compute ``commit`` in torch's operations, which define it."""
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
    # The host sees the end one iteration later. Until then the row must not write to a slot that
    # may be another request's by now.
    rows.slot_of_row.copy_(torch.where(goes_on, rows.slot_of_row, rows.scratch_slot))
    rows.result[:, ACTIVE].copy_(rows.active)
