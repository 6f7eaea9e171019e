"""The buffers of the first rows of a decoding batch, and the layout of what the host reads."""

from dataclasses import dataclass

from torch import Tensor

# Columns of ``result`` before the k + 1 output tokens.
NUM_EMITTED, NUM_ACCEPTED, ACTIVE, OUT = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class RowState:
    """Buffers of the first b rows. Integers are int64, as embedding and indexing want them.

    ``last [b]``: the newest token, whose KV is not yet written. ``drafts [b, k]``.
    ``seq_len [b]``: committed KV rows, target and head alike. ``slot_of_row [b]``: the request's,
    or the scratch slot once it has ended.
    ``active [b]``: 1 while the request decodes. ``tokens_left [b]``: still to emit.
    ``hidden [b, k + 1, H]``: verify's, in the form the head wants. ``chain [b, 1, H]``: the
    head's own, for the next draft step. ``result [b, k + 4]``: what the host reads, in one copy:
    num_emitted, num_accepted, active after, and the k + 1 tokens of ``out``.
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
    """0..k, shared by all rows, as are ``eos_ids``."""
    scratch_slot: Tensor
    """``[]``: the slot that padded and finished rows write to; shared."""
    uniforms: Tensor
    """``[slots, 2k + 1]`` in [0, 1), for the acceptance rule; shared, for a slot is a request.

    k for the tests of the drafts, one for the token after them, k for drawing drafts."""
    draft_probs: Tensor
    """``[slots, k + 1, V]`` float32: what draft j + 1 was drawn from, where the rule draws drafts;
    else V = 0. Row k stays zero: nothing was drafted there.

    By slot, so that re-packing moves none of it; the rule picks rows by index in any case."""

    @property
    def batch_size(self) -> int:
        return self.last.shape[0]

    @property
    def spec_tokens(self) -> int:
        return self.drafts.shape[1]

    @property
    def out(self) -> Tensor:
        """``[b, k + 1]``: the accepted drafts, then the bonus or recovered token."""
        return self.result[:, OUT:]

    @property
    def num_accepted(self) -> Tensor:
        """``[b]``: drafts kept, 0..k."""
        return self.result[:, NUM_ACCEPTED]

    @property
    def num_emitted(self) -> Tensor:
        """``[b]``: tokens that this iteration added, 0..k + 1."""
        return self.result[:, NUM_EMITTED]
