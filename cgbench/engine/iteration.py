"""The speculative iteration: verify, accept, draft 1, drafts 2..k, commit.

Every shape is fixed by (batch, k), and nothing reads a device value on the host. So the same
functions run eager, are captured a phase at a time, or are captured whole.

A head may have several MTP modules. Module j was trained on pairs of a row i's hidden state and
token i + j, and draft j comes of its row ``seq_len + num_accepted``. An iteration makes tokens
certain that its last j - 1 rows were computed without. So draft step j computes the rows from
``seq_len - (j - 1)`` to ``seq_len + k`` again: k + j a request. Every row that a module reads is
then of tokens that are certain, or of this iteration's drafts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cgbench.engine.acceptance import AcceptanceRule
from cgbench.engine.calls import Decode, DecodeBackend, Rows
from cgbench.engine.kv import KvCache
from cgbench.kernels.row_updates import RowState, commit
from cgbench.kernels.windows.module_window import module_window
from cgbench.models.attention_hook import AttentionCall
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import HiddenStates, Target
from cgbench.parallel.collectives import from_first_rank
from cgbench.request.choices import FirstEmbedding, ModuleFeed, NormSide
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

    @property
    def num_modules(self) -> int:
        """The head's MTP modules, 1 without a head."""
        return 1 if self.head is None else self.head.num_modules

    def has_own_module(self, step: int) -> bool:
        """Whether draft ``step``, past the first, is made by a module that no step before it
        ran."""
        return 1 < step <= self.num_modules

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
        step: int = 1,
    ) -> Tensor:
        """The module of draft ``step`` on ``hidden [B, S, H]`` at ``positions [B, S]``, each row
        paired with a token after it, ``tokens [B, S]``: the block's output, ``[B, S, H]``.
        ``from_start``: column 0 is position 0, where some families feed no embedding."""
        assert self.head is not None
        module = self.head.module_of(step)
        embeds = self.target.embed(tokens, module.embedding)
        if module.family.first_embed == FirstEmbedding.ZEROED:
            if from_start:
                embeds[:, 0] = 0
            elif self.has_own_module(step):
                # A window that begins before the newest row may begin at the prompt's first.
                embeds = embeds.masked_fill((positions == 0)[..., None], 0)
        rope = self.target.rope(embeds, positions, module.layer_type)
        return module(embeds, hidden, rope, positions, attention_call=call)  # type: ignore[no-any-return]

    def draft_logits(self, block_out: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """``block_out [B, 1, H]`` of draft ``step`` to its logits ``[B, V]`` and the chain
        ``[B, 1, H]`` after it."""
        assert self.head is not None
        module = self.head.module_of(step)
        normed = module.to_logits_input(block_out)
        logits = self.logits(normed[:, 0], module.output)
        return logits, module.to_chain(block_out, normed)

    def fed_next(self, fed: Tensor, block_out: Tensor, step: int) -> Tensor:
        """What the module after that of draft ``step`` is fed, ``[B, S, H]``: what this one was, or
        what it made of it, ``block_out``."""
        assert self.head is not None
        module = self.head.module_of(step)
        if module.family.feed == ModuleFeed.TARGET:
            return fed
        if module.family.chain == NormSide.PRE:
            return block_out
        return module.to_chain(block_out, module.to_logits_input(block_out))

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
    keep_fed(spec, rows, rows.hidden, block_out, step=1)
    emit_draft(spec, rows, take_row(block_out, rows.num_accepted), step=1)


def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
    """Draft ``step`` (2..k): by a module of its own, or from draft step - 1 and the chain, one
    position further on."""
    if spec.has_own_module(step):
        draft_by_own_module(spec, rows, step)
        return
    positions = (rows.seq_len + rows.num_accepted)[:, None] + (step - spec.num_modules)
    call = spec.decode_call(rows, positions)
    token = rows.drafts[:, step - 2 : step - 1]
    block_out = spec.run_head(token, rows.chain, positions, call, step=step)
    emit_draft(spec, rows, block_out, step)


def draft_by_own_module(spec: Speculator, rows: RowState, step: int) -> None:
    """Draft ``step`` by the module of that step, over the k + step rows that this iteration made
    certain or new."""
    window = module_window(rows, step)
    call = spec.decode_call(rows, window.positions)
    block_out = spec.run_head(window.tokens, window.hidden, window.positions, call, step=step)
    keep_fed(spec, rows, window.hidden, block_out, step)
    emit_draft(spec, rows, take_row(block_out, window.newest), step)


def keep_fed(
    spec: Speculator, rows: RowState, hidden: Tensor, block_out: Tensor, step: int
) -> None:
    """Keep what the module of draft ``step + 1`` is fed, if there is one of its own."""
    if step < rows.spec_tokens and spec.has_own_module(step + 1):
        fed = spec.fed_next(hidden, block_out, step)
        rows.fed[:, : fed.shape[1]].copy_(fed)


def emit_draft(spec: Speculator, rows: RowState, block_out: Tensor, step: int) -> None:
    """``block_out [b, 1, H]`` to draft ``step`` and the chain of the step after it."""
    logits, chain = spec.draft_logits(block_out, step)
    rows.drafts[:, step - 1] = spec.settled(spec.accept.draft(rows, logits, step))
    if step < rows.spec_tokens:
        rows.chain.copy_(chain)
