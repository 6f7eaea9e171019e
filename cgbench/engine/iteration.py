"""One speculative iteration is verify, accept, draft 1, drafts 2..k and commit.

Every shape is fixed by (batch, k), and nothing reads a device value on the host. So the same
functions run eager, are captured a phase at a time, or are captured whole.

A head may have several MTP modules. Module j was trained on pairs of a row i's hidden state and
token i + j, and draft j comes of its row ``seq_len + num_accepted``. An iteration makes tokens
certain that its last j - 1 rows were computed without. So draft step j computes the rows from
``seq_len - (j - 1)`` to ``seq_len + k`` again: k + j a request. Every row that a module reads is
then of tokens that are certain, or of this iteration's drafts.

A parallel drafter makes all drafts in the stage of draft 1 (``block_drafts``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cgbench.engine import block_drafts
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

    @property
    def fed_size(self) -> int:
        """Return the width of verify's states that draft 1 is fed, or the target's own."""
        return self.target.hidden_size if self.head is None else self.head.fed_size

    @property
    def chain_size(self) -> int:
        """Return the width of the head's own hidden state, or the target's without a head."""
        return self.target.hidden_size if self.head is None else self.head.hidden_size

    @property
    def is_parallel(self) -> bool:
        """Return whether one forward makes every draft."""
        return block_drafts.is_parallel(self)

    @property
    def num_modules(self) -> int:
        """Return the number of the head's MTP modules, which is 1 without a head."""
        return 1 if self.head is None else self.head.num_modules

    def has_own_module(self, step: int) -> bool:
        """Return whether draft ``step`` is past the first and of a module that no step before it
        ran.
        """
        return 1 < step <= self.num_modules

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
        step: int = 1,
    ) -> Tensor:
        """Run the module of draft ``step`` on ``hidden [B, S, H]`` at ``positions [B, S]``.

        Returns the output of its block, ``[B, S, H]``. Each row is paired with a token after it,
        ``tokens [B, S]``. With ``from_start`` column 0 is position 0, where some families feed no
        embedding.
        """
        assert self.head is not None
        module = self.head.module_of(step)
        embeds = self.target.embed(tokens, module.embedding)
        if module.family.first_embed == FirstEmbedding.ZEROED:
            if from_start:
                embeds[:, 0] = 0
            elif self.has_own_module(step):
                # A window that begins before the newest row may begin at the prompt's first.
                embeds = embeds.masked_fill((positions == 0)[..., None], 0)
        rope = module.rope(self.target, embeds, positions)
        return module(embeds, hidden, rope, positions, attention_call=call)  # type: ignore[no-any-return]

    def draft_logits(self, block_out: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the logits ``[B, V]`` of draft ``step``, and the chain ``[B, 1, H]`` after it.

        Both come from the module's ``block_out [B, 1, H]``. V is the head's own vocabulary.
        """
        assert self.head is not None
        module = self.head.module_of(step)
        normed = module.to_logits_input(block_out)
        logits = self.logits(normed[:, 0], module.output)
        return logits, module.to_chain(block_out, normed)

    def draft(self, rows: RowState, logits: Tensor, step: int) -> Tensor:
        """Return draft ``step`` as tokens of the target, ``[b]``, from ``draft_logits``.

        A rule that draws drafts keeps their distribution over the target's vocabulary.
        """
        assert self.head is not None
        module = self.head.module_of(step)
        if self.accept.samples_drafts:
            whole = module.over_vocabulary(logits, self.target.vocab_size)
            return self.accept.draft(rows, whole, step)
        return module.to_target(self.accept.draft(rows, logits, step))

    def fed_next(self, fed: Tensor, block_out: Tensor, step: int) -> Tensor:
        """Return what the module after that of draft ``step`` is fed, ``[B, S, H]``.

        That is what this one was ``fed``, or what it made of it, ``block_out``.
        """
        assert self.head is not None
        module = self.head.module_of(step)
        if module.family.feed == ModuleFeed.TARGET:
            return fed
        if module.family.chain == NormSide.PRE:
            return block_out
        return module.to_chain(block_out, module.to_logits_input(block_out))

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
    """Make draft 1, by the head over the k + 1 verified rows. A parallel drafter makes all k."""
    if spec.is_parallel:
        block_drafts.draft_after_verify(spec, rows)
    else:
        draft_first(spec, rows)
    mark(Stage.draft(1))


@torch.inference_mode()
def draft_rest_phase(spec: Speculator, rows: RowState, mark: Mark = no_mark) -> None:
    """Make drafts 2..k, one token a request each, and commit.

    Nothing is left to draft after a parallel drafter.
    """
    for step in range(2, 1 if spec.is_parallel else rows.spec_tokens + 1):
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
    call = spec.decode_call(rows, positions)
    if spec.cache.recurrent is not None:
        # Made ahead of the layers, whose kernels read what is pending before they wait.
        _ = call.rows.states
    hidden = spec.target.forward(tokens, positions, call)
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
    keep_fed(spec, rows, rows.hidden, block_out, step=1)
    emit_draft(spec, rows, take_row(block_out, rows.num_accepted), step=1)


def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
    """Make draft ``step`` (2..k) by a module of its own, or by the last module again.

    The last module goes on from draft step - 1 and the chain, one position further on.
    """
    if spec.has_own_module(step):
        draft_by_own_module(spec, rows, step)
        return
    positions = (rows.seq_len + rows.num_accepted)[:, None] + (step - spec.num_modules)
    call = spec.decode_call(rows, positions)
    token = rows.drafts[:, step - 2 : step - 1]
    block_out = spec.run_head(token, rows.chain, positions, call, step=step)
    emit_draft(spec, rows, block_out, step)


def draft_by_own_module(spec: Speculator, rows: RowState, step: int) -> None:
    """Make draft ``step`` by the module of that step.

    It runs over the k + step rows that this iteration made certain or new.
    """
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
    """Write draft ``step`` and the chain of the step after it, from ``block_out [b, 1, H]``."""
    logits, chain = spec.draft_logits(block_out, step)
    rows.drafts[:, step - 1] = spec.settled(spec.draft(rows, logits, step))
    if step < rows.spec_tokens:
        rows.chain.copy_(chain)
