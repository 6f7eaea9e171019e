"""Distributions over the vocabulary and draws from them, in shapes that a graph can capture.

Nothing here reads a device value on the host: no ``multinomial``, no boolean indexing.
"""

import torch
from torch import Tensor


def distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """``logits [..., V]`` to the probabilities that are sampled from, float32, ``[..., V]``.

    Temperature, then top-k, then top-p, as transformers' logits warpers take them. Tokens that
    tie with the last one kept are kept too, which transformers does for top-k only. Sorts only
    where top-k or top-p asks for it.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    if top_k is not None or top_p < 1.0:
        scaled = scaled.masked_fill(scaled < _lowest_kept(scaled, top_k, top_p), -torch.inf)
    return scaled.softmax(-1)


def _lowest_kept(scaled: Tensor, top_k: int | None, top_p: float) -> Tensor:
    """The lowest logit ``[..., 1]`` that top-k and then top-p keep; top-p keeps one at least."""
    if top_k is None:
        largest = scaled.sort(-1, descending=True).values
    else:
        largest = scaled.topk(min(top_k, scaled.shape[-1])).values
    if top_p == 1.0:
        return largest[..., -1:]
    probs = largest.softmax(-1)
    mass_before = probs.cumsum(-1) - probs
    return largest.masked_fill(mass_before >= top_p, torch.inf).amin(-1, keepdim=True)


def draw(weights: Tensor, uniforms: Tensor, likeliest: Tensor) -> Tensor:
    """A token ``[B]`` a row by inverse CDF: ``weights [B, V]``, not negative, of any sum, and
    ``uniforms [B]`` in [0, 1).

    A token of weight zero never comes out. A parallel sum rounds by its order, so it can step up,
    or end, where there is no weight; and a residual may be all zero by rounding. There, less than
    once in a million draws, the token is ``likeliest [B]``.
    """
    cdf = weights.cumsum(-1)
    found = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)
    token = found.clamp(max=weights.shape[-1] - 1)
    has_weight = weights.gather(-1, token) > 0
    return torch.where(has_weight, token, likeliest[:, None])[:, 0]
