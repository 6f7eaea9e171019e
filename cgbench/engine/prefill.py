"""Prefill: prompts into KV slots, eager and untimed. Request i goes to slot i."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cgbench.engine.attention import Prefill, Rows
from cgbench.engine.iteration import Speculator, draft_next, take_row
from cgbench.engine.state import DecodeState, Prefilled


@torch.inference_mode()
def prefill(spec: Speculator, prompts: list[list[int]], max_num_tokens: int) -> Prefilled:
    """The target over every prompt, then the head over the same rows.

    Prompts are token ids, none empty; they run in groups, padded to each group's longest, of at
    most ``max_num_tokens`` tokens (one prompt at least). The head's row i pairs hidden i with
    token i + 1; at the last row that is the target's first new token.
    """
    groups = _groups(prompts, max_num_tokens)
    parts = [_prefill_group(spec, group) for group in groups]
    return Prefilled(
        last=torch.cat([part.last for part in parts]),
        seq_len=torch.cat([part.seq_len for part in parts]),
        chain=_cat([part.chain for part in parts]),
        first_draft=_cat([part.first_draft for part in parts]),
    )


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
    """Fill the state's rows from a prefill and draft 2..k, so that the next step is verify.

    ``seed`` starts the draws of a random acceptance rule: the same seed, the same draws, in every
    scope.
    """
    if spec.accept.is_random:
        torch.manual_seed(seed)
    state.begin(prefilled, tokens_left=tokens_left, ignore_eos=ignore_eos)
    rows = state.rows(prefilled.batch_size)
    # The head's newest row is the prompt's last: as after an iteration that kept no draft there.
    rows.seq_len.sub_(1)
    rows.num_accepted.zero_()
    for step in range(2, state.spec_tokens + 1):
        draft_next(spec, rows, step)
    rows.seq_len.add_(1)


@dataclass(frozen=True, slots=True)
class _Group:
    first_slot: int
    prompts: list[list[int]]


def _groups(prompts: list[list[int]], max_num_tokens: int) -> list[_Group]:
    groups: list[_Group] = []
    for slot, prompt in enumerate(prompts):
        if groups:
            longest = max(len(prompt), *map(len, groups[-1].prompts))
            if longest * (len(groups[-1].prompts) + 1) <= max_num_tokens:
                groups[-1].prompts.append(prompt)
                continue
        groups.append(_Group(slot, [prompt]))
    return groups


def _prefill_group(spec: Speculator, group: _Group) -> Prefilled:
    device = spec.target.device
    lengths = torch.tensor([len(prompt) for prompt in group.prompts], device=device)
    longest = max(map(len, group.prompts))
    tokens = torch.tensor(
        [prompt + [0] * (longest - len(prompt)) for prompt in group.prompts], device=device
    )
    slots = torch.arange(len(group.prompts), device=device) + group.first_slot
    return prefill_slots(spec, tokens, lengths, slots)


def prefill_slots(spec: Speculator, tokens: Tensor, lengths: Tensor, slots: Tensor) -> Prefilled:
    """``tokens [B, S]``, right-padded, of ``lengths [B]``, into ``slots [B]``."""
    batch, longest = tokens.shape
    positions = torch.arange(longest, device=tokens.device).expand(batch, -1)
    call = Prefill(Rows(spec.cache, slots, positions))
    hidden = spec.target.forward(tokens, positions, call)
    newest = take_row(hidden.post_norm, lengths - 1)
    last = spec.target.logits(newest[:, 0]).argmax(-1)
    if spec.head is None:
        return Prefilled(last, lengths, None, None)
    following = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], dim=1)
    following = following.scatter(1, lengths[:, None] - 1, last[:, None])
    block_out = spec.run_head(following, spec.head_input(hidden), positions, call, from_start=True)
    first_draft, chain = spec.draft(take_row(block_out, lengths - 1))
    return Prefilled(last, lengths, chain, first_draft)


def _cat(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None
