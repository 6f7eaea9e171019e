"""What the head would draft at every row of known text, and the iterations that follow from it."""

import torch
from torch import Tensor

from mtp_training.chain import CausalAttention, positions, run_chain
from mtp_training.model import Model


@torch.no_grad()
def drafts_of_rows(model: Model, full: Tensor, spec_tokens: int) -> Tensor:
    """``[B, L]`` ids to ``[B, L-1, k]``: what the head would draft if an iteration began there.

    Row i knows the target's hidden state at i and token i+1; after that it follows its own drafts.
    """
    hidden = model.target.forward(full, positions(full), CausalAttention())
    outputs = run_chain(
        model.target,
        model.head,
        model.head.to_input(hidden)[:, :-1],
        lambda step, before: full[:, 1:] if step == 1 else first_choice(model, before[-1]),
        spec_tokens,
    )
    return torch.stack([first_choice(model, out) for out in outputs], dim=-1)


def first_choice(model: Model, out: Tensor) -> Tensor:
    """What the lm_head reads, ``[B, S, H]``, to its first choice ``[B, S]``."""
    return model.target.logits(out).argmax(-1)


def walk(tokens: Tensor, prompt_length: int, drafts: Tensor) -> list[int]:
    """Decode ``tokens [L]`` again by iterations; returns the drafts that each accepted.

    Token i+1 is the newest when row i drafts i+2..i+k+1. Since ``tokens`` is the target's greedy
    text, the drafts accepted are the leading ones that equal it. An iteration that would look
    past the end is not begun: its acceptance could not be known.
    """
    spec_tokens = drafts.shape[1]
    accepted, row = [], prompt_length - 1
    while row + 1 + spec_tokens < len(tokens):
        wanted = tokens[row + 2 : row + 2 + spec_tokens]
        accepted.append(int((drafts[row] == wanted).int().cumprod(0).sum()))
        row += accepted[-1] + 1
    return accepted
