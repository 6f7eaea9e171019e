"""One speculative iteration is verify, accept, draft 1, drafts 2..k and commit.

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
"""A mark is called with each stage at its end, and with None at the start of the first one."""


def no_mark(_: Stage | None) -> None:
    """Do nothing at a stage's end. This is the mark of an iteration that is not timed by stage."""


@dataclass(frozen=True, slots=True)
class Speculator:
    """A speculator is what the iteration computes with. It is fixed while any graph over it is
    alive."""

    target: Target
    head: DraftHead | None
    cache: KvCache
    backend: DecodeBackend
    accept: AcceptanceRule
    runs_compiled: bool = True
    """Layers that have a compiled form run it if this is true.

    It is false while parts inside a layer are watched, because a compiled form does not call them.
    """

    def decode_call(self, rows: RowState, positions: Tensor) -> Decode:
        """Return the call that serves tokens at ``positions [b, S]`` of the rows' slots."""
        places = Rows(self.cache, rows.slot_of_row, positions)
        return Decode(places, self.backend, self.runs_compiled)

    def head_input(self, hidden: HiddenStates) -> Tensor:
        """Return the target's hidden states ``[B, S, H]`` in the form that draft 1 is fed."""
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
        """Run the head on ``hidden [B, S, H]`` at ``positions [B, S]``.

        Returns the output of its block, ``[B, S, H]``. Each row is paired with the token after it,
        ``tokens [B, S]``. With ``from_start`` column 0 is position 0, where some families feed no
        embedding.
        """
        assert self.head is not None
        embeds = self.target.embed(tokens, self.head.embedding)
        if from_start and self.head.family.first_embed == FirstEmbedding.ZEROED:
            embeds[:, 0] = 0
        rope = self.target.rope(embeds, positions)
        return self.head(embeds, hidden, rope, positions, attention_call=call)  # type: ignore[no-any-return]

    def draft_logits(self, block_out: Tensor) -> tuple[Tensor, Tensor]:
        """Return a draft's logits ``[B, V]``, and the chain ``[B, 1, H]`` for the next draft step.

        Both come from the head's ``block_out [B, 1, H]``.
        """
        assert self.head is not None
        normed = self.head.to_logits_input(block_out)
        logits = self.logits(normed[:, 0], self.head.output)
        return logits, self.head.to_chain(block_out, normed)

    def logits(self, normed: Tensor, output: nn.Module | None = None) -> Tensor:
        """Return the logits that the acceptance rule reads after a final norm.

        They are ``[..., V]``. If the ranks divide the vocabulary and the rule wants the argmax
        alone, they are this rank's part. ``output`` is a head's own matrix, or None for the
        target's.
        """
        if self.accept.draws_tokens:
            return self.target.logits(normed, output)
        return self.target.logits_part(normed, output)

    def settled(self, drawn: Tensor) -> Tensor:
        """Make what a rule has drawn equal on every rank, in place.

        Parallel sums may round a draw to another token. An argmax is the same on every rank
        already.
        """
        return from_first_rank(drawn) if self.accept.draws_tokens else drawn


def take_row(hidden: Tensor, index: Tensor) -> Tensor:
    """Return row ``index [B]`` of ``hidden [B, S, H]``, as ``[B, 1, H]``."""
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[-1]))


@torch.inference_mode()
def iteration(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Run one whole iteration over the first b rows, in place."""
    mark(None)
    verify_phase(spec, rows, mark)
    if rows.spec_tokens:
        draft_first_phase(spec, rows, mark)
        draft_rest_phase(spec, rows, mark)


@torch.inference_mode()
def verify_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Verify and accept. If there are no drafts to make (k = 0), commit too."""
    logits = verify(spec, rows)
    mark(Stage.VERIFY)
    if spec.accept.is_random:
        # All of it is filled, whatever the bucket, so that a request's draws depend on no other.
        rows.uniforms.uniform_()
    spec.accept(rows, logits)
    spec.settled(rows.result)
    mark(Stage.ACCEPT)
    if not rows.spec_tokens:
        commit(rows)
        mark(Stage.COMMIT)


@torch.inference_mode()
def draft_first_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Make draft 1, by the head over the k + 1 verified rows."""
    draft_first(spec, rows)
    mark(Stage.draft(1))


@torch.inference_mode()
def draft_rest_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Make drafts 2..k, one token a request each, and commit."""
    for step in range(2, rows.spec_tokens + 1):
        draft_next(spec, rows, step)
        mark(Stage.draft(step))
    commit(rows)
    mark(Stage.COMMIT)


def verify(spec: Speculator, rows: RowState) -> Tensor:
    """Run the target on ``[last, d1..dk]`` and return the logits ``[b, k + 1, V]``.

    The logits are those of ``Speculator.logits``. The hidden states go to ``rows``.
    """
    tokens = torch.cat([rows.last[:, None], rows.drafts], dim=1)
    positions = rows.seq_len[:, None] + rows.offsets
    hidden = spec.target.forward(tokens, positions, spec.decode_call(rows, positions))
    if spec.head is not None and rows.spec_tokens:
        rows.hidden.copy_(spec.head_input(hidden))
    return spec.logits(hidden.post_norm)


def draft_first(spec: Speculator, rows: RowState) -> None:
    """Run the head on verify's rows, and write draft 1 and the chain.

    Row j is paired with out[j]. All k + 1 rows enter the head's KV. Those past num_accepted are
    never read, and the next iteration overwrites them. Only row num_accepted goes on. It is
    gathered before norm and lm_head.
    """
    positions = rows.seq_len[:, None] + rows.offsets
    call = spec.decode_call(rows, positions)
    block_out = spec.run_head(rows.out, rows.hidden, positions, call)
    emit_draft(spec, rows, take_row(block_out, rows.num_accepted), step=1)


def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
    """Make draft ``step`` (2..k) from draft step - 1 and the chain, one position further on."""
    positions = (rows.seq_len + rows.num_accepted)[:, None] + (step - 1)
    call = spec.decode_call(rows, positions)
    block_out = spec.run_head(rows.drafts[:, step - 2 : step - 1], rows.chain, positions, call)
    emit_draft(spec, rows, block_out, step)


def emit_draft(spec: Speculator, rows: RowState, block_out: Tensor, step: int) -> None:
    """Write draft ``step`` and the chain of the step after it, from ``block_out [b, 1, H]``."""
    logits, chain = spec.draft_logits(block_out)
    rows.drafts[:, step - 1] = spec.settled(spec.accept.draft(rows, logits, step))
    if step < rows.spec_tokens:
        rows.chain.copy_(chain)
