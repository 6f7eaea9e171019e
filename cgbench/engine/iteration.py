"""The speculative iteration: verify, accept, draft 1, drafts 2..k, commit.

Every shape is fixed by (batch, k), and nothing reads a device value on the host. So the same
functions run eager, are captured a phase at a time, or are captured whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cgbench.engine.acceptance import AcceptanceRule
from cgbench.engine.calls import Decode, DecodeBackend, Rows
from cgbench.engine.kv import KvCache
from cgbench.kernels.row_updates import RowState, commit
from cgbench.models.attention_hook import AttentionCall
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import HiddenStates, Target
from cgbench.parallel.collectives import from_first_rank
from cgbench.request.choices import FirstEmbedding
from cgbench.words import Stage

Mark = Callable[[Stage | None], None]
"""Called at the end of every stage with it, and with None where the first one begins."""


def no_mark(_: Stage | None) -> None:
    """The mark of an iteration that is not taken apart."""


@dataclass(frozen=True, slots=True)
class Speculator:
    """What the iteration computes with: fixed while any graph over it is alive."""

    target: Target
    head: DraftHead | None
    cache: KvCache
    backend: DecodeBackend
    accept: AcceptanceRule
    runs_compiled: bool = True
    """Whether layers that have a compiled form run it: what watches a layer's parts cannot."""

    def decode_call(self, rows: RowState, positions: Tensor) -> Decode:
        """Attention for tokens at ``positions [b, S]`` of the rows' slots."""
        places = Rows(self.cache, rows.slot_of_row, positions)
        return Decode(places, self.backend, self.runs_compiled)

    def head_input(self, hidden: HiddenStates) -> Tensor:
        """The target's hidden states ``[B, S, H]`` in the form that draft 1 is fed."""
        assert self.head is not None
        return self.head.to_input(hidden)

    def run_head(
        self,
        tokens: Tensor,
        hidden: Tensor,
        positions: Tensor,
        call: AttentionCall,
        *,
        from_start: bool = False,
    ) -> Tensor:
        """The head on ``hidden [B, S, H]`` at ``positions [B, S]``, each row paired with the token
        after it, ``tokens [B, S]``: the block's output, ``[B, S, H]``. ``from_start``: column 0 is
        position 0, where some families feed no embedding."""
        assert self.head is not None
        embeds = self.target.embed(tokens, self.head.embedding)
        if from_start and self.head.family.first_embed == FirstEmbedding.ZEROED:
            embeds[:, 0] = 0
        rope = self.target.rope(embeds, positions)
        return self.head(embeds, hidden, rope, positions, attention_call=call)  # type: ignore[no-any-return]

    def draft_logits(self, block_out: Tensor) -> tuple[Tensor, Tensor]:
        """``block_out [B, 1, H]`` to the logits ``[B, V]`` of a draft and the chain
        ``[B, 1, H]`` after it."""
        assert self.head is not None
        normed = self.head.to_logits_input(block_out)
        logits = self.logits(normed[:, 0], self.head.output)
        return logits, self.head.to_chain(block_out, normed)

    def logits(self, normed: Tensor, output: nn.Module | None = None) -> Tensor:
        """What the acceptance rule reads after a final norm: the logits ``[..., V]``, or this
        rank's part of them where it only wants their argmax. ``output`` is a head's own matrix,
        None for the target's."""
        if self.accept.draws_tokens:
            return self.target.logits(normed, output)
        return self.target.logits_part(normed, output)

    def settled(self, drawn: Tensor) -> Tensor:
        """What a rule has decided, alike on every rank, in place: parallel sums may round a draw
        to another token, an argmax never."""
        return from_first_rank(drawn) if self.accept.draws_tokens else drawn


def take_row(hidden: Tensor, index: Tensor) -> Tensor:
    """Row ``index [B]`` of ``hidden [B, S, H]``, as ``[B, 1, H]``."""
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[-1]))


@torch.inference_mode()
def iteration(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """One whole iteration over the first b rows, in place."""
    mark(None)
    verify_phase(spec, rows, mark)
    if rows.spec_tokens:
        draft_first_phase(spec, rows, mark)
        draft_rest_phase(spec, rows, mark)


@torch.inference_mode()
def verify_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Verify and accept; with no drafts to make (k = 0), commit too."""
    logits = verify(spec, rows)
    mark(Stage.VERIFY)
    if spec.accept.is_random:
        # All of it, whatever the bucket, so that the draws of a request depend on no other.
        rows.uniforms.uniform_()
    spec.accept(rows, logits)
    spec.settled(rows.result)
    mark(Stage.ACCEPT)
    if not rows.spec_tokens:
        commit(rows)
        mark(Stage.COMMIT)


@torch.inference_mode()
def draft_first_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Draft 1: the head over the k + 1 verified rows."""
    draft_first(spec, rows)
    mark(Stage.draft(1))


@torch.inference_mode()
def draft_rest_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Drafts 2..k, one token a request each, and commit."""
    for step in range(2, rows.spec_tokens + 1):
        draft_next(spec, rows, step)
        mark(Stage.draft(step))
    commit(rows)
    mark(Stage.COMMIT)


def verify(spec: Speculator, rows: RowState) -> Tensor:
    """The target on ``[last, d1..dk]``: logits ``[b, k + 1, V]``, as ``Speculator.logits`` gives
    them; hidden states go to ``rows``."""
    tokens = torch.cat([rows.last[:, None], rows.drafts], dim=1)
    positions = rows.seq_len[:, None] + rows.offsets
    hidden = spec.target.forward(tokens, positions, spec.decode_call(rows, positions))
    if spec.head is not None and rows.spec_tokens:
        rows.hidden.copy_(spec.head_input(hidden))
    return spec.logits(hidden.post_norm)


def draft_first(spec: Speculator, rows: RowState) -> None:
    """The head on verify's rows, row j paired with out[j]: writes draft 1 and the chain.

    All k + 1 rows enter the head's KV; those past num_accepted are never read, and the next
    iteration overwrites them. Only row num_accepted goes on, gathered before norm and lm_head.
    """
    positions = rows.seq_len[:, None] + rows.offsets
    call = spec.decode_call(rows, positions)
    block_out = spec.run_head(rows.out, rows.hidden, positions, call)
    emit_draft(spec, rows, take_row(block_out, rows.num_accepted), step=1)


def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
    """Draft ``step`` (2..k) from draft step - 1 and the chain, one position further on."""
    positions = (rows.seq_len + rows.num_accepted)[:, None] + (step - 1)
    call = spec.decode_call(rows, positions)
    block_out = spec.run_head(rows.drafts[:, step - 2 : step - 1], rows.chain, positions, call)
    emit_draft(spec, rows, block_out, step)


def emit_draft(spec: Speculator, rows: RowState, block_out: Tensor, step: int) -> None:
    """``block_out [b, 1, H]`` to draft ``step`` and the chain of the step after it."""
    logits, chain = spec.draft_logits(block_out)
    rows.drafts[:, step - 1] = spec.settled(spec.accept.draft(rows, logits, step))
    if step < rows.spec_tokens:
        rows.chain.copy_(chain)
