"""Prefill writes prompts into KV slots, eager and untimed. Request i goes to slot i."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cgbench.engine import block_drafts
from cgbench.engine.calls import Prefill, Rows
from cgbench.engine.iteration import Speculator, draft_next, emit_draft, take_row
from cgbench.engine.state import DecodeState, Prefilled
from cgbench.kernels.row_updates import RowState
from cgbench.models.target import HiddenStates, request_keys


@torch.inference_mode()
def prefill(
    spec: Speculator,
    prompts: list[list[int]],
    max_num_tokens: int,
    seed: int = 0,
    *,
    distinct: bool = False,
) -> Prefilled:
    """Run the target over every prompt, and then each of the head's modules over the same rows.

    Prompts are token ids, and none is empty. They run in waves of at most ``max_num_tokens``
    tokens, padded to each wave's longest. A wave has at least one prompt.

    The head's row i pairs hidden i with token i + 1. At the last row that is the target's first new
    token. A parallel drafter keeps all rows as context instead. ``seed`` is for a rule that draws
    that token: one draw a request, whatever the waves. With ``distinct`` balanced routing takes
    equal prompts for different requests, as they are in a timed batch.
    """
    keys = request_keys(prompts, spec.target.device)
    if distinct:
        keys = torch.arange(len(prompts), device=keys.device)
    spec.cache.request_keys[: len(prompts)] = keys
    uniforms = _uniforms(len(prompts), seed)
    parts = [_prefill_wave(spec, wave, uniforms) for wave in _waves(prompts, max_num_tokens)]
    return Prefilled(
        last=torch.cat([part.last for part in parts]),
        seq_len=torch.cat([part.seq_len for part in parts]),
        block_out=_joined([part.block_out for part in parts]),
        fed=_joined([part.fed for part in parts]),
        carries=_joined([part.carries for part in parts], dim=1),
    )


def _joined(parts: Sequence[Tensor | None], dim: int = 0) -> Tensor | None:
    """The parts along the dimension of the requests; None if the head has none of it."""
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim) if there else None


def _uniforms(count: int, seed: int) -> list[float]:
    """Return multiples of 2^-24 below 1, which are exact in float32.

    They are drawn apart from torch's generator, which ``begin_decoding`` may start from the same
    seed. So no draw of an iteration is one of these.
    """
    source = random.Random(f"prefill {seed}")
    return [source.getrandbits(24) / (1 << 24) for _ in range(count)]


@torch.inference_mode()
def begin_decoding(
    spec: Speculator,
    state: DecodeState,
    prefilled: Prefilled,
    *,
    tokens_left: int,
    ignore_eos: bool = False,
    seed: int = 0,
) -> None:
    """Fill the state's rows from a prefill and make the drafts, so that the next step is verify.

    ``seed`` starts the draws of a random acceptance rule. The same seed gives the same draws in
    every scope.
    """
    if spec.accept.is_random:
        torch.manual_seed(seed)
    state.begin(prefilled, tokens_left=tokens_left, ignore_eos=ignore_eos)
    if spec.cache.recurrent is not None:
        spec.cache.recurrent.begin(prefilled.batch_size)
    if state.spec_tokens:
        _draft(spec, state.rows(prefilled.batch_size), prefilled)


def _draft(spec: Speculator, rows: RowState, prefilled: Prefilled) -> None:
    """Make all k drafts after a prefill."""
    if spec.accept.samples_drafts:
        rows.uniforms.uniform_()
    if not spec.is_parallel:
        assert prefilled.block_out is not None
        emit_draft(spec, rows, prefilled.block_out, step=1)
    # The head's newest row is the prompt's last, as after an iteration that kept no draft there.
    rows.seq_len.sub_(1)
    rows.num_accepted.zero_()
    rows.out[:, 0] = rows.last
    if prefilled.fed is not None and rows.fed.numel():
        rows.fed[:, :1] = prefilled.fed
    if spec.is_parallel:
        block_drafts.draft_all(spec, rows)
    else:
        for step in range(2, rows.spec_tokens + 1):
            draft_next(spec, rows, step)
    rows.seq_len.add_(1)


@dataclass(frozen=True, slots=True)
class _Wave:
    """Prompts that one forward takes."""

    first_slot: int
    prompts: list[list[int]]


def _waves(prompts: list[list[int]], max_num_tokens: int) -> list[_Wave]:
    waves: list[_Wave] = []
    longest = 0
    for slot, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if waves and longest * (len(waves[-1].prompts) + 1) <= max_num_tokens:
            waves[-1].prompts.append(prompt)
        else:
            waves.append(_Wave(slot, [prompt]))
            longest = len(prompt)
    return waves


def _prefill_wave(spec: Speculator, wave: _Wave, uniforms: list[float]) -> Prefilled:
    device = spec.target.device
    lengths = torch.tensor([len(prompt) for prompt in wave.prompts], device=device)
    longest = max(map(len, wave.prompts))
    tokens = torch.tensor(
        [prompt + [0] * (longest - len(prompt)) for prompt in wave.prompts], device=device
    )
    slots = torch.arange(len(wave.prompts), device=device) + wave.first_slot
    end = wave.first_slot + len(wave.prompts)
    draws = torch.tensor(uniforms[wave.first_slot : end], device=device)
    return prefill_slots(spec, tokens, lengths, slots, draws)


def prefill_slots(
    spec: Speculator, tokens: Tensor, lengths: Tensor, slots: Tensor, uniforms: Tensor
) -> Prefilled:
    """Prefill ``tokens [B, S]``, right-padded, into ``slots [B]``.

    ``lengths [B]`` are the prompts' own. ``uniforms [B]`` choose the first new tokens. The cache's
    ``request_keys`` must already name the requests.
    """
    batch, longest = tokens.shape
    positions = torch.arange(longest, device=tokens.device).expand(batch, -1)
    call = Prefill(Rows(spec.cache, slots, positions), lengths)
    hidden = spec.target.forward(tokens, positions, call)
    newest = take_row(hidden.post_norm, lengths - 1)
    last = spec.settled(spec.accept.choose(spec.logits(newest[:, 0]), uniforms))
    if spec.head is None:
        return Prefilled(last, lengths, None)
    if spec.is_parallel:
        block_drafts.keep_context(spec, spec.head_input(hidden), positions, call)
        return Prefilled(last, lengths, None)
    following = _shifted(tokens).scatter(1, lengths[:, None] - 1, last[:, None])
    return head_rows(spec, following, hidden, call).prefilled(last, lengths)


@dataclass(frozen=True, slots=True)
class HeadRows:
    """These rows are what a head made of whole prompts, every row of them.

    ``block_out [B, S, H]`` is the first module's. ``fed`` is what each later module was fed,
    ``[B, S, H]`` too.
    """

    block_out: Tensor
    fed: tuple[Tensor, ...]

    def prefilled(self, last: Tensor, lengths: Tensor) -> Prefilled:
        """Return what decoding begins from after the first ``lengths [B]`` tokens.

        ``last [B]`` are the tokens after them. A row depends on no later one, so any shorter length
        than the prompts' own is right too.
        """
        first = Prefilled(last, lengths, take_row(self.block_out, lengths - 1))
        if not self.fed:
            return first
        carries = [
            take_row(fed, (lengths - step).clamp(min=0))[:, 0]
            for step, fed in enumerate(self.fed, 2)
        ]
        second = take_row(self.fed[0], lengths - 1)
        return replace(first, fed=second, carries=torch.stack(carries))


def head_rows(spec: Speculator, following: Tensor, hidden: HiddenStates, call: Prefill) -> HeadRows:
    """Run each of the head's modules over prompts whose ``hidden`` states are known.

    ``following [B, S]`` is the token after each row. ``call`` places the rows in the cache.
    """
    positions = call.rows.positions
    fed = spec.head_input(hidden)
    block_out = first = spec.run_head(following, fed, positions, call, from_start=True)
    later: list[Tensor] = []
    for step in range(2, spec.num_modules + 1):
        fed = spec.fed_next(fed, block_out, step - 1)
        later.append(fed)
        # The newest rows want tokens that are yet to be drafted: the first drafts make them anew.
        following = _shifted(following)
        block_out = spec.run_head(following, fed, positions, call, from_start=True, step=step)
    return HeadRows(first, tuple(later))


def _shifted(tokens: Tensor) -> Tensor:
    """``tokens [B, S]``, each row one further on, behind which any token stands."""
    return torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
