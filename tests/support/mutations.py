"""Faults to plant in the engine, each with the check that claims it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.compile import mixtures
from cgbench.engine import backends, calls, iteration, prefill, recurrent
from cgbench.engine.acceptance import Greedy
from cgbench.engine.calls import Decode, Rows
from cgbench.engine.iteration import Speculator, take_row
from cgbench.engine.recurrent import DecodeStates, PrefillStates, RecurrentCache
from cgbench.engine.state import DecodeState, Prefilled
from cgbench.kernels import attention
from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.kernels.gdn import delta_rule
from cgbench.kernels.gdn.delta_net import DeltaRows, LayerState
from cgbench.kernels.gdn.delta_rule import Pending
from cgbench.kernels.moe.expert_products import Choice, Experts, Padding, SharedExpert
from cgbench.kernels.row_updates import ACTIVE, RowState
from cgbench.models.target import HiddenStates, Target
from tests.support.audited import PretendGraphs

# A checkpoint whose head has an embedding and an output matrix of its own, and is fed no embedding
# at position 0; the shipped model's is otherwise.
OWN = "own"

# A checkpoint whose head has three modules.
MODULES = "modules"

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


@dataclass(frozen=True)
class Mutation:
    """A fault, and the check that claims it."""

    name: str
    claimed_by: str
    plant: Plant
    kind: str = "mimo"
    with_graphs: bool = False
    with_operators: bool = False
    """Whether layers run as they are compiled, by operators."""


MUTATIONS: list[Mutation] = []


def mutation(claimed_by: str, **subject: Any) -> Callable[[Plant], Plant]:
    """Enter a fault in the table."""

    def enter(plant: Plant) -> Plant:
        MUTATIONS.append(Mutation(plant.__name__, claimed_by, plant, **subject))
        return plant

    return enter


# Verify and accept.


@mutation("padding")
def padded_row_leaks(patch: Patch) -> None:
    """Something sums over the batch at weight zero: a NaN in padding is one everywhere."""
    real = iteration.verify

    def verify(spec: Speculator, rows: RowState) -> Tensor:
        logits = real(spec, rows)
        return logits + 0 * logits.sum(0, keepdim=True)

    patch.setattr(iteration, "verify", verify)


@mutation("equality")
def verify_position_off_by_one(patch: Patch) -> None:
    """Rotary positions of verify are one too high; the KV rows are right."""

    def verify(spec: Speculator, rows: RowState) -> Tensor:
        tokens = torch.cat([rows.last[:, None], rows.drafts], dim=1)
        positions = rows.seq_len[:, None] + rows.offsets
        hidden = spec.target.forward(tokens, positions + 1, spec.decode_call(rows, positions))
        if rows.spec_tokens:
            rows.hidden.copy_(spec.head_input(hidden))
        return spec.target.logits(hidden.post_norm)

    patch.setattr(iteration, "verify", verify)


@mutation("limits")
def drafts_counted_past_a_rejection(patch: Patch) -> None:
    """Accepted is how many drafts agree, not how many of the leading ones."""

    def accept(self: Greedy, rows: RowState, logits: Tensor) -> None:
        rows.out.copy_(logits.argmax(-1))
        rows.num_accepted.copy_((rows.drafts == rows.out[:, :-1]).sum(-1))

    patch.setattr(Greedy, "__call__", accept)


# Attention and KV.


@mutation("hidden")
def mask_one_column_too_wide(patch: Patch) -> None:
    """Every query sees the key after its own."""

    def live_mask(positions: Tensor, room: int, sliding_window: int | None) -> Tensor:
        return torch.arange(room) <= positions[:, None, :, None] + 1

    patch.setattr(attention, "live_mask", live_mask)


@mutation("hidden", kind="mistral")
def window_one_key_too_wide(patch: Patch) -> None:
    """A sliding window counts one key more than the model's."""
    real = attention.live_mask

    def live_mask(positions: Tensor, room: int, sliding_window: int | None) -> Tensor:
        return real(positions, room, None if sliding_window is None else sliding_window + 1)

    patch.setattr(attention, "live_mask", live_mask)


@mutation("padding")
def stale_row_read(patch: Patch) -> None:
    """The last query alone sees one key too many: a stale row, past what verify wrote."""
    real = attention.live_mask

    def live_mask(positions: Tensor, room: int, sliding_window: int | None) -> Tensor:
        mask = real(positions, room, sliding_window).clone()
        past = (positions[:, -1] + 1).clamp(max=room - 1)
        mask[torch.arange(len(past)), 0, -1, past] = True
        return mask

    patch.setattr(attention, "live_mask", live_mask)


@mutation("isolation")
def kv_written_one_row_too_low(patch: Patch) -> None:
    """A forward stores its rows, and its first row also over the committed one before it."""
    real = backends.sdpa_decode

    def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
        before = Rows(rows.cache, rows.slots, (rows.positions[:, :1] - 1).clamp(min=0))
        out = real(kv, rows, qkv)
        first = qkv._replace(key=qkv.key[:, :, :1], value=qkv.value[:, :, :1])
        calls.store(kv, before, first)
        return out

    patch.setitem(backends.DECODE_BACKENDS, "sdpa", decode)


@mutation("isolation")
def neighbours_slot_read(patch: Patch) -> None:
    """Attention reads the KV of the slot after the row's own."""
    real = attention.slot_view

    def slot_view(tensor: Tensor, slots: Tensor, room: int) -> Tensor:
        return real(tensor, (slots + 1) % (len(tensor) // room), room)

    patch.setattr(attention, "slot_view", slot_view)


@mutation("isolation")
def kv_written_to_the_wrong_slot(patch: Patch) -> None:
    """What a decode step writes goes to the next slot as well."""
    real = backends.sdpa_decode

    def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
        beside = Rows(rows.cache, (rows.slots + 1) % rows.cache.num_slots, rows.positions)
        calls.store(kv, beside, qkv)
        return real(kv, rows, qkv)

    patch.setitem(backends.DECODE_BACKENDS, "sdpa", decode)


@mutation("padding")
def padding_writes_to_slot_zero(patch: Patch) -> None:
    """Rows made padding keep slot 0 in place of the scratch slot."""

    def clear(self: DecodeState) -> None:
        for name in self._PER_REQUEST:
            getattr(self.full, name).zero_()

    patch.setattr(DecodeState, "clear", clear)


@mutation("isolation")
def padded_rows_keep_their_slots(patch: Patch) -> None:
    """Re-packing moves rows to the front and leaves those behind them as they were."""

    def repack(self: DecodeState, keep: list[int]) -> None:
        for name in self._PER_REQUEST:
            buffer = getattr(self.full, name)
            buffer[: len(keep)] = buffer[torch.tensor(keep)]

    patch.setattr(DecodeState, "repack", repack)


@mutation("isolation")
def earlier_request_shows(patch: Patch) -> None:
    """Attention leans on a row at the slot's end, which an earlier, longer request has filled."""
    real = backends.sdpa_decode

    def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
        out = real(kv, rows, qkv)
        stale = attention.slot_view(kv.values, rows.slots, rows.cache.room)[:, :, 20]
        return out + 1e-3 * stale.sum((1, 2))[:, None, None, None]

    patch.setitem(backends.DECODE_BACKENDS, "sdpa", decode)


# The drafting path, which lossless decoding hides.


@mutation("drafts")
def chain_from_the_wrong_row(patch: Patch) -> None:
    """The row before num_accepted is taken."""

    def faulty(hidden: Tensor, index: Tensor) -> Tensor:
        return take_row(hidden, (index - 1).clamp(min=0))

    patch.setattr(iteration, "take_row", faulty)


@mutation("drafts")
def draft_step_position_off_by_one(patch: Patch) -> None:
    """Draft steps stay at the position of the step before them."""

    def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
        positions = (rows.seq_len + rows.num_accepted)[:, None] + (step - 2)
        call = spec.decode_call(rows, positions)
        token = rows.drafts[:, step - 2 : step - 1]
        block_out = spec.run_head(token, rows.chain, positions, call)
        iteration.emit_draft(spec, rows, block_out, step)

    for module in (iteration, prefill):
        patch.setattr(module, "draft_next", draft_next)


@mutation("drafts")
def draft_kv_not_overwritten(patch: Patch) -> None:
    """Draft 1 runs on its newest row alone: the rows before it keep what draft steps wrote."""

    def draft_first(spec: Speculator, rows: RowState) -> None:
        newest = rows.num_accepted[:, None]
        positions = rows.seq_len[:, None] + newest
        call = spec.decode_call(rows, positions)
        hidden = take_row(rows.hidden, rows.num_accepted)
        block_out = spec.run_head(rows.out.gather(1, newest), hidden, positions, call)
        iteration.emit_draft(spec, rows, block_out, step=1)

    patch.setattr(iteration, "draft_first", draft_first)


@mutation("drafts")
def chain_not_updated(patch: Patch) -> None:
    """Draft steps after the second are fed the chain of draft 1."""
    real = iteration.draft_next

    def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
        chain = rows.chain.clone()
        real(spec, rows, step)
        rows.chain.copy_(chain)

    for module in (iteration, prefill):
        patch.setattr(module, "draft_next", draft_next)


@mutation("drafts")
def draft_step_spoils_a_true_row(patch: Patch) -> None:
    """Draft steps leave their keys one row too low, over the newest true one."""
    real = iteration.draft_next

    def draft_next(spec: Speculator, rows: RowState, step: int) -> None:
        real(spec, rows, step)
        assert spec.head is not None
        kv = spec.cache.layers[spec.head.layer_idx]
        row = rows.slot_of_row * spec.cache.room + rows.seq_len + rows.num_accepted
        kv.keys[row] = kv.keys[row + 1]

    patch.setattr(iteration, "draft_next", draft_next)


@mutation("drafts")
def draft_first_fed_the_drafts(patch: Patch) -> None:
    """The head's rows are paired with what was drafted, not with what verify emitted."""

    def draft_first(spec: Speculator, rows: RowState) -> None:
        positions = rows.seq_len[:, None] + rows.offsets
        call = spec.decode_call(rows, positions)
        tokens = torch.cat([rows.drafts, rows.out[:, -1:]], 1)
        block_out = spec.run_head(tokens, rows.hidden, positions, call)
        iteration.emit_draft(spec, rows, take_row(block_out, rows.num_accepted), step=1)

    patch.setattr(iteration, "draft_first", draft_first)


@mutation("hidden")
def hidden_before_the_norm(patch: Patch) -> None:
    """The head is fed the target's hidden state before the final norm, where it wants it after."""

    def head_input(self: Speculator, hidden: HiddenStates) -> Tensor:
        return hidden.pre_norm

    patch.setattr(Speculator, "head_input", head_input)


@mutation("drafts", kind=OWN)
def drafts_by_the_targets_lm_head(patch: Patch) -> None:
    """A head's own output matrix is taken for a copy of the target's."""
    real = Speculator.logits
    patch.setattr(Speculator, "logits", lambda self, normed, _=None: real(self, normed))


@mutation("drafts", kind=OWN)
def drafts_from_the_targets_embedding(patch: Patch) -> None:
    """A head's own embedding is taken for a copy of the target's."""
    real = Target.embed
    patch.setattr(Target, "embed", lambda self, token_ids, _=None: real(self, token_ids))


@mutation("drafts", kind=OWN)
def first_embedding_kept(patch: Patch) -> None:
    """The embedding at position 0 is fed, where heads of this family are not fed it."""
    real = Speculator.run_head

    def run_head(self: Speculator, *args: Any, from_start: bool = False, **others: Any) -> Tensor:
        return real(self, *args, **others)

    patch.setattr(Speculator, "run_head", run_head)


@mutation("drafts")
def head_not_prefilled(patch: Patch) -> None:
    """The head's KV rows of the prompt are left empty; the first draft is right."""
    real = prefill.prefill_slots

    def faulty(spec: Speculator, *args: Tensor) -> Any:
        done = real(spec, *args)
        assert spec.head is not None
        layer = spec.cache.layers[spec.head.layer_idx]
        layer.keys.zero_()
        layer.values.zero_()
        return done

    patch.setattr(prefill, "prefill_slots", faulty)


# Commit, and the state between iterations.


def _commit(
    rows: RowState,
    *,
    emitted_by_accept: Tensor | None = None,
    advance: Tensor | None = None,
    heeds_active: bool = True,
    counts_tokens: bool = True,
    eos_at_end_only: bool = False,
    last_column: Tensor | None = None,
) -> None:
    """``commit`` with switches for what to get wrong."""
    accepted = rows.num_accepted
    limit = accepted + 1 if emitted_by_accept is None else emitted_by_accept
    is_eos = (rows.out[:, :, None] == rows.eos_ids).any(-1)
    if eos_at_end_only:
        is_eos = is_eos & (rows.offsets == accepted[:, None])
    first_eos = torch.where(is_eos, rows.offsets, rows.spec_tokens + 1).amin(1)
    limit = torch.minimum(limit, first_eos + 1)
    if counts_tokens:
        limit = torch.minimum(limit, rows.tokens_left)
    emitted = limit * rows.active if heeds_active else limit
    rows.num_emitted.copy_(emitted)
    column = accepted if last_column is None else last_column
    rows.last.copy_(rows.out.gather(1, column[:, None])[:, 0])
    rows.seq_len.add_(emitted if advance is None else advance * rows.active)
    rows.tokens_left.sub_(emitted)
    rows.active.mul_((first_eos >= emitted) & (rows.tokens_left > 0))
    rows.result[:, ACTIVE].copy_(rows.active)


@mutation("equality")
def length_advanced_by_k(patch: Patch) -> None:
    """seq_len goes on by k + 1 whatever was accepted."""

    def commit(rows: RowState) -> None:
        _commit(rows, advance=torch.full_like(rows.last, rows.spec_tokens + 1))

    patch.setattr(iteration, "commit", commit)


@mutation("limits")
def bonus_token_dropped(patch: Patch) -> None:
    """After k accepted drafts no bonus token is emitted."""

    def commit(rows: RowState) -> None:
        k = rows.spec_tokens
        emitted = (rows.num_accepted + 1).clamp(max=max(k, 1))
        _commit(rows, emitted_by_accept=emitted, last_column=emitted - 1)

    patch.setattr(iteration, "commit", commit)


@mutation("equality")
def last_token_is_the_last_column(patch: Patch) -> None:
    """The newest token is taken from the end of the verified row, not where acceptance ended."""

    def commit(rows: RowState) -> None:
        _commit(rows, last_column=torch.full_like(rows.last, rows.spec_tokens))

    patch.setattr(iteration, "commit", commit)


@mutation("limits")
def eos_among_drafts_ignored(patch: Patch) -> None:
    """Only the bonus or recovered token ends a request."""
    patch.setattr(iteration, "commit", lambda rows: _commit(rows, eos_at_end_only=True))


@mutation("limits")
def eos_never_set(patch: Patch) -> None:
    """The state forgets the checkpoint's end of sequence."""
    patch.setattr(DecodeState, "_set_eos", lambda self, ignore_eos: None)


@mutation("limits")
def first_token_never_ends_a_request(patch: Patch) -> None:
    """A request whose prefill gave EOS, or that had one token of room, decodes on."""
    real = DecodeState.begin

    def begin(self: DecodeState, prefilled: Prefilled, **rest: Any) -> None:
        real(self, prefilled, **rest)
        self.rows(prefilled.batch_size).active.fill_(1)

    patch.setattr(DecodeState, "begin", begin)


@mutation("limits")
def eos_does_not_end(patch: Patch) -> None:
    """Tokens are cut at EOS, and the request goes on."""
    real = iteration.commit

    def commit(rows: RowState) -> None:
        was_active = rows.active.clone()
        real(rows)
        rows.active.copy_(was_active)

    patch.setattr(iteration, "commit", commit)


@mutation("isolation")
def finished_rows_go_on(patch: Patch) -> None:
    """A finished request is still emitted for, and its length moves."""
    patch.setattr(
        iteration, "commit", lambda rows: _commit(rows, heeds_active=False, counts_tokens=False)
    )


@mutation("isolation")
def finished_rows_keep_their_slot(patch: Patch) -> None:
    """A finished request goes on writing to a slot that may be another's by now."""
    real = iteration.commit

    def commit(rows: RowState) -> None:
        slots = rows.slot_of_row.clone()
        real(rows)
        rows.slot_of_row.copy_(slots)

    patch.setattr(iteration, "commit", commit)


@mutation("limits")
def tokens_left_not_heeded(patch: Patch) -> None:
    """An accepted run goes past the length limit."""
    patch.setattr(iteration, "commit", lambda rows: _commit(rows, counts_tokens=False))


@mutation("parity")
def buffer_reassigned(patch: Patch) -> None:
    """A step puts a new tensor in a buffer's place: whoever holds the old one reads stale tokens,
    as a graph of another bucket would."""
    real = iteration.commit

    def commit(rows: RowState) -> None:
        object.__setattr__(rows, "last", rows.last.clone())
        real(rows)

    patch.setattr(iteration, "commit", commit)


@mutation("equality")
def repack_forgets_the_slots(patch: Patch) -> None:
    """Rows move to the front; their slots do not move with them."""
    real = DecodeState.repack

    def repack(self: DecodeState, keep: list[int]) -> None:
        real(self, keep)
        self.full.slot_of_row[: len(keep)] = torch.arange(len(keep))

    patch.setattr(DecodeState, "repack", repack)


# Recurrent state.


@mutation("equality", kind="qwen3_5")
def state_of_the_last_row(patch: Patch) -> None:
    """Verify goes on from the state after every row that is kept, accepted or not."""
    real = delta_rule.pending_rows

    def pending_rows(layer: LayerState, slots: Tensor, first: Tensor, count: Tensor) -> Pending:
        return real(layer, slots, first, torch.where(count > 0, layer.most_pending, 0))

    patch.setattr(delta_rule, "pending_rows", pending_rows)


@mutation("hidden", kind="qwen3_5")
def state_stays_at_the_prompt(patch: Patch) -> None:
    """No accepted row ever enters the state."""
    patch.setattr(recurrent, "num_pending", lambda cache, slots, _: torch.zeros_like(slots))


@mutation("padding", kind="qwen3_5")
def state_takes_one_row_too_many(patch: Patch) -> None:
    """A row that was not accepted enters the state: what lies there is stale."""
    real = delta_rule.pending_rows

    def pending_rows(layer: LayerState, slots: Tensor, first: Tensor, count: Tensor) -> Pending:
        return real(layer, slots, first, (count + 1).clamp(max=layer.most_pending))

    patch.setattr(delta_rule, "pending_rows", pending_rows)


@mutation("hidden", kind="qwen3_5")
def convolution_one_row_late(patch: Patch) -> None:
    """The convolution's ring is read one row too low."""
    real = delta_rule.conv_inputs

    def conv_inputs(
        ring: Tensor, rows: Tensor, slots: Tensor, positions: Tensor, num_before: int
    ) -> Tensor:
        inputs = real(ring, rows, slots, positions, num_before)
        inputs[:, :num_before] = inputs[:, :num_before].roll(1, dims=1)
        return inputs

    patch.setattr(delta_rule, "conv_inputs", conv_inputs)


@mutation("equality", kind="qwen3_5")
def state_runs_over_a_prompts_padding(patch: Patch) -> None:
    """A short prompt's state is taken at its group's longest."""
    real = PrefillStates.delta_rule

    def delta_rule(self: PrefillStates, layer_idx: int, rows: DeltaRows) -> Tensor:
        longest = torch.full_like(self.lengths, rows.num_tokens[1])
        return real(replace(self, lengths=longest), layer_idx, rows)

    patch.setattr(PrefillStates, "delta_rule", delta_rule)


@mutation("equality", kind="qwen3_5")
def state_not_put_back(patch: Patch) -> None:
    """Decoding begins where the last one of the slot ended."""

    def begin(self: RecurrentCache, batch_size: int) -> None:
        self.length[:batch_size] = self.prompt_length[:batch_size]

    patch.setattr(RecurrentCache, "begin", begin)


@mutation("isolation", kind="qwen3_5")
def state_written_to_the_wrong_slot(patch: Patch) -> None:
    """A row's new state goes to the next slot as well."""
    _written_beside(patch, "matrix")


@mutation("isolation", kind="qwen3_5")
def added_rows_written_to_the_wrong_slot(patch: Patch) -> None:
    """What a row adds to its state is kept for the next slot as well."""
    _written_beside(patch, "updates")


def _written_beside(patch: Patch, name: str) -> None:
    """A layer's buffer of that name goes from each slot to the next, if no row has that one."""
    real = DecodeStates.delta_rule

    def delta_rule(self: DecodeStates, layer_idx: int, rows: DeltaRows) -> Tensor:
        out = real(self, layer_idx, rows)
        tensor: Tensor = getattr(self.cache.layers[layer_idx], name)
        beside = (self.slots + 1) % len(tensor)
        others = ~torch.isin(beside, self.slots)
        tensor[beside[others]] = tensor[self.slots[others]]
        return out

    patch.setattr(DecodeStates, "delta_rule", delta_rule)


# Mixtures as operators. ``kernel_faults`` has those of their kernels.


@mutation("equality", kind="qwen3_next", with_operators=True)
def live_row_taken_for_padding(patch: Patch) -> None:
    """The first slot's row sends nothing to its experts."""

    def padding(self: Decode) -> Padding:
        return Padding(self.rows.slots, 0, self.rows.positions.shape[1])

    patch.setattr(Decode, "padding", property(padding))


@mutation("equality", kind="qwen3_next", with_operators=True)
def stale_choice_of_experts(patch: Patch) -> None:
    """Of each size and layer, the experts of the first step are those of the next ones too."""
    real, kept = mixtures.apply_by_torch, {}

    def apply(experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None) -> Tensor:
        key = choice.chosen.shape, experts.down.data_ptr()
        chosen = kept.setdefault(key, choice.chosen)
        return real(experts, x, replace(choice, chosen=chosen), residual)

    patch.setattr(mixtures, "apply_by_torch", apply)


@mutation("equality", kind="qwen3_next", with_operators=True)
def a_tokens_last_expert_is_left_out(patch: Patch) -> None:
    """Sums run over one slot too few."""
    real = mixtures.apply_by_torch

    def apply(experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None) -> Tensor:
        fewer = Choice(choice.chosen[:, :-1], choice.weights[:, :-1], choice.padding)
        return real(experts, x, fewer, residual)

    patch.setattr(mixtures, "apply_by_torch", apply)


@mutation("equality", kind="qwen3_next", with_operators=True)
def shared_expert_is_added_twice(patch: Patch) -> None:
    """The experts' operator takes it in, and the residual has it already."""
    real = mixtures.apply_by_torch

    def apply(experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None) -> Tensor:
        out = real(experts, x, choice, residual)
        return out + (out - real(experts.without_shared(), x, choice, residual))

    patch.setattr(mixtures, "apply_by_torch", apply)


@mutation("equality", kind="qwen3_next", with_operators=True)
def shared_gate_of_another_row(patch: Patch) -> None:
    """A shared expert counts for each token as it should for the one before."""
    real = SharedExpert.weight_of

    def weight_of(self: SharedExpert, x: Tensor) -> Tensor | None:
        weight = real(self, x)
        return None if weight is None else weight.roll(1, 0)

    patch.setattr(SharedExpert, "weight_of", weight_of)


# Replays. The graphs are pretended here, and real in tests/gpu.


@mutation("parity", with_graphs=True)
def stale_address(patch: Patch) -> None:
    """Replays read the drafts at the address that they had at capture; they have moved since."""

    def replay(self: PretendGraphs, batch_size: int) -> None:
        rows = self.captured[batch_size]
        iteration.iteration(self.spec, replace(rows, drafts=torch.zeros_like(rows.drafts)))

    patch.setattr(PretendGraphs, "replay", replay)


@mutation("parity", with_graphs=True)
def wrong_bucket_replayed(patch: Patch) -> None:
    """The smallest graph is replayed, whatever the batch."""

    def replay(self: PretendGraphs, batch_size: int) -> None:
        iteration.iteration(self.spec, self.captured[min(self.captured)])

    patch.setattr(PretendGraphs, "replay", replay)


@mutation("parity", with_graphs=True)
def graph_drafts_once(patch: Patch) -> None:
    """A captured graph lacks the draft steps after the first: acceptance falls, tokens do not."""

    def replay(self: PretendGraphs, batch_size: int) -> None:
        rows = self.captured[batch_size]
        iteration.verify_phase(self.spec, rows)
        if rows.spec_tokens:
            iteration.draft_first_phase(self.spec, rows)
            iteration.commit(rows)

    patch.setattr(PretendGraphs, "replay", replay)
