"""Measure how far the reference's own numbers move when they are rounded otherwise.

Experts are chosen by comparing scores: two that are nearly alike change places with the rounding,
and everything behind them jumps. The largest jump on a few prompts says little about the next.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target

TRIES = 32
NOISE_TRIES = 8


def picks_when_rounded_otherwise(target: Target, pick: Callable[[], int], token: int) -> bool:
    """Whether ``pick``, which runs ``target``, returns ``token`` in one of ``TRIES`` runs, in each
    of which all token embeddings are moved by rounding's size."""
    for seed in range(TRIES):
        with moved_embeddings(target, seed):
            if pick() == token:
                return True
    return False


def noise_when_rounded_otherwise(
    target: Target, head: DraftHead, compute: Callable[[], Tensor], logits: Tensor
) -> float:
    """How far ``compute``, which runs ``target`` and ``head`` and gave ``logits [V]``, is from
    itself: the largest difference of a logit in ``NOISE_TRIES`` runs with moved embeddings.

    This is the noise of a chain of drafts. The head is fed what it made of the target's state, a
    pass more for each draft. Each pass adds its rounding to what it amplifies. A random head's
    third draft may be nothing but noise.
    """
    noises: list[float] = []
    for seed in range(NOISE_TRIES):
        with moved_embeddings(target, seed, head):
            noises.append(float((compute().float() - logits.float()).abs().max()))
    return max(noises)


@contextmanager
def moved_embeddings(target: Target, seed: int, head: DraftHead | None = None) -> Iterator[None]:
    """Each number of an embedding is off by at most a unit in its last place meanwhile, of a
    ``head`` with an embedding of its own too."""
    # Seeded: tensor parallel ranks have to move them alike.
    draws = torch.Generator(target.device).manual_seed(seed)

    def move(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        shares = torch.rand(out.shape, generator=draws, device=out.device) - 0.5
        # eps is a unit in the last place of 1; of a number just below 2 it is two units.
        return (out.float() * (1 + torch.finfo(out.dtype).eps * shares)).to(out.dtype)

    heads = () if head is None else head.mtp_modules
    own = [each.embedding for each in heads if each.embedding is not None]
    modules = [target.model.get_input_embeddings(), *own]
    handles = [module.register_forward_hook(move) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
