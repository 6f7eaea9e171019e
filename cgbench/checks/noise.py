"""Measure how far the reference's own numbers move when they are rounded otherwise.

Experts are chosen by comparing scores. Two that are nearly alike change places with the rounding,
and everything behind them jumps. The largest jump on a few prompts predicts little about the next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target

TRIES = 32
NOISE_TRIES = 8
MOVE_OF_CODES = 2.0**-10
"""Embeddings move at least so far, relatively, where activations are quantised to FP8.

A last bit of float32 decides of one activation in 100,000 which code it becomes. A check quantises
more than that, and few tries would miss it. So far moved, about one activation in 100 becomes
another code in every try.
"""


def picks_when_rounded_otherwise(
    target: Target, pick: Callable[[], int], token: int, least_move: float = 0.0
) -> bool:
    """Return whether ``pick``, which runs ``target``, returns ``token`` in one of ``TRIES`` runs.
    Each run moves all token embeddings by rounding's size, or by ``least_move`` if that is more.
    """
    for seed in range(TRIES):
        with moved_embeddings(target, seed, least_move=least_move):
            if pick() == token:
                return True
    return False


def noise_when_rounded_otherwise(
    target: Target,
    head: DraftHead,
    compute: Callable[[], Tensor],
    logits: Tensor,
    least_move: float = 0.0,
) -> float:
    """Return how far ``compute`` is from itself: the largest difference of a logit in
    ``NOISE_TRIES`` runs with moved embeddings. ``compute`` runs ``target`` and ``head``, and gave
    ``logits [V]``.

    This is the noise of a chain of drafts. The head is fed what it made of the target's state, a
    pass more for each draft. Each pass adds its rounding to what it amplifies. A random head's
    third draft may be nothing but noise.
    """
    noises: list[float] = []
    for seed in range(NOISE_TRIES):
        with moved_embeddings(target, seed, head, least_move):
            noises.append(float((compute().float() - logits.float()).abs().max()))
    return max(noises)


@contextmanager
def moved_embeddings(
    target: Target, seed: int, head: DraftHead | None = None, least_move: float = 0.0
) -> Iterator[None]:
    """Move each number of the target's embeddings meanwhile by at most a unit in its last place,
    or half of ``least_move`` of it if that is more. A ``head`` with an embedding of its own has it
    moved too.
    """
    # Draws are seeded, because tensor parallel ranks have to move the embeddings alike.
    draws = torch.Generator(target.device).manual_seed(seed)

    def move(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        shares = torch.rand(out.shape, generator=draws, device=out.device) - 0.5
        # eps is a unit in the last place of 1. For a number just below 2 it is two units.
        most = max(torch.finfo(out.dtype).eps, least_move)
        return (out.float() * (1 + most * shares)).to(out.dtype)

    heads = () if head is None else head.mtp_modules
    own = [each.embedding for each in heads if each.embedding is not None]
    modules = [target.model.get_input_embeddings(), *own]
    handles = [module.register_forward_hook(move) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
