"""Row state is static device buffers of a decoding batch, allocated once for the largest batch.

A batch of b requests works on the first b rows. Rows past the requests are padding. They are
inactive, have length 0, and write to the scratch slot. So one code path serves every bucket.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cgbench.kernels.row_updates import OUT, RowState

UNLIMITED_TOKENS = 1 << 40
"""This value of ``tokens_left`` means that no length limit ends the request."""

NO_TOKEN = -1
"""This end-of-sequence id equals no token. It fills ``eos_ids`` if EOS is ignored."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A ``Prefilled`` holds what prefill leaves for the first b rows.

    It has ``last [b]`` and ``seq_len [b]``. With a head there is also ``block_out [b, 1, H]``, its
    block's output, from which draft 1 is made. A parallel drafter leaves none, because all that it
    reads is in its KV.

    A head with m > 1 modules leaves two more. ``fed [b, 1, H]`` is what the second one is fed at
    the prompt's last row. ``carries [m - 1, b, H]`` is what each module past the first is fed at
    the row that its first window begins with.
    """

    last: Tensor
    seq_len: Tensor
    block_out: Tensor | None
    fed: Tensor | None = None
    carries: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Return the number of requests."""
        return self.last.shape[0]


class DecodeState:
    """A decode state holds the buffers for one k, and offers what happens between iterations."""

    _PER_REQUEST = ("last", "drafts", "seq_len", "slot_of_row", "active", "tokens_left")

    def __init__(
        self,
        *,
        spec_tokens: int,
        max_batch_size: int,
        scratch_slot: int,
        hidden_size: int,
        fed_size: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
        eos_token_ids: tuple[int, ...] = (),
        draft_vocab_size: int = 0,
        num_modules: int = 1,
    ) -> None:
        """Allocate the buffers. Every row is padding at first.

        ``hidden_size`` is the head's. ``fed_size`` is the width of what its draft 1 is fed, None if
        it is the same. ``draft_vocab_size`` is V of ``RowState.draft_probs``. It is 0 if no rule
        reads it. ``num_modules`` counts the head's MTP modules.
        """
        k, b = spec_tokens, max_batch_size
        num_drafting = max(1, min(k, num_modules))

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.scratch_slot = scratch_slot
        self.eos_token_ids = eos_token_ids
        self.full = RowState(
            last=integers(b),
            drafts=integers(b, k),
            seq_len=integers(b),
            slot_of_row=torch.full((b,), scratch_slot, dtype=torch.long, device=device),
            active=integers(b),
            tokens_left=integers(b),
            hidden=torch.zeros(b, k + 1, fed_size or hidden_size, dtype=dtype, device=device),
            chain=torch.zeros(b, 1, hidden_size, dtype=dtype, device=device),
            result=integers(b, OUT + k + 1),
            eos_ids=torch.full(
                (max(1, len(eos_token_ids)),), NO_TOKEN, dtype=torch.long, device=device
            ),
            offsets=torch.arange(k + 1, device=device),
            scratch_slot=torch.tensor(scratch_slot, device=device),
            uniforms=torch.zeros(scratch_slot + 1, 2 * k + 1, device=device),
            draft_probs=torch.zeros(
                scratch_slot + 1, k + 1, draft_vocab_size if k else 0, device=device
            ),
            fed=torch.zeros(
                *(b, k + num_drafting if num_drafting > 1 else 0, hidden_size),
                dtype=dtype,
                device=device,
            ),
            carries=torch.zeros(
                num_drafting - 1, scratch_slot + 1, hidden_size, dtype=dtype, device=device
            ),
        )
        self._rows: dict[int, RowState] = {}

    @property
    def spec_tokens(self) -> int:
        """Return k."""
        return self.full.spec_tokens

    def rows(self, batch_size: int) -> RowState:
        """Return views of the first ``batch_size`` rows. They view the same buffers at every
        call."""
        if batch_size not in self._rows:
            assert batch_size <= self.full.batch_size
            full = self.full
            self._rows[batch_size] = RowState(
                **{name: getattr(full, name)[:batch_size] for name in self._PER_REQUEST},
                hidden=full.hidden[:batch_size],
                chain=full.chain[:batch_size],
                result=full.result[:batch_size],
                eos_ids=full.eos_ids,
                offsets=full.offsets,
                scratch_slot=full.scratch_slot,
                uniforms=full.uniforms,
                draft_probs=full.draft_probs,
                fed=full.fed[:batch_size],
                carries=full.carries,
            )
        return self._rows[batch_size]

    def clear(self) -> None:
        """Make every row padding."""
        for name in self._PER_REQUEST:
            getattr(self.full, name).zero_()
        self.full.slot_of_row.fill_(self.scratch_slot)

    def begin(self, prefilled: Prefilled, *, tokens_left: int, ignore_eos: bool) -> None:
        """Put the prefilled requests in the first rows, request i in row i and slot i.

        ``tokens_left`` counts the tokens that a request may still emit, its prefill's token not
        included. The caller makes the drafts.
        """
        self.clear()
        rows = self.rows(prefilled.batch_size)
        self._set_eos(ignore_eos)
        rows.last.copy_(prefilled.last)
        rows.seq_len.copy_(prefilled.seq_len)
        rows.tokens_left.fill_(tokens_left)
        ended = (prefilled.last[:, None] == rows.eos_ids).any(1)
        rows.active.copy_(~ended & (rows.tokens_left > 0))
        slots = torch.arange(prefilled.batch_size, device=rows.last.device)
        rows.slot_of_row.copy_(torch.where(rows.active > 0, slots, rows.scratch_slot))
        if prefilled.carries is not None:
            carries = prefilled.carries[: len(rows.carries)]
            rows.carries[:, : prefilled.batch_size] = carries

    def _set_eos(self, ignore_eos: bool) -> None:
        self.full.eos_ids.fill_(NO_TOKEN)
        if self.eos_token_ids and not ignore_eos:
            self.full.eos_ids.copy_(torch.tensor(self.eos_token_ids))

    def repack(self, keep: list[int]) -> None:
        """Move the rows ``keep`` to the front, in that order, and make the rest padding.

        Row state moves. KV never does, because ``slot_of_row`` moves with its row.
        """
        index = torch.tensor(keep, device=self.full.last.device)
        moved = {name: getattr(self.full, name)[index] for name in self._PER_REQUEST}
        self.clear()
        for name, values in moved.items():
            getattr(self.full, name)[: len(keep)] = values
