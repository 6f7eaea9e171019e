"""Make distributions over the vocabulary and draw from them, in shapes that a graph can capture.

Nothing here reads a device value on the host: no ``multinomial``, no boolean indexing.
"""

import torch
from torch import Tensor


def distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """``logits [..., V]`` to the probabilities that are sampled from, float32, ``[..., V]``.

    Temperature, then top-k, then top-p, as transformers' logits warpers take them: tokens that tie
    with the k-th are kept, and top-p keeps one at least. Sorts only where top-p asks for it.
    """
    scaled = logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    if top_k is not None:
        lowest_kept = scaled.topk(min(top_k, scaled.shape[-1])).values[..., -1:]
        scaled = scaled.masked_fill(scaled < lowest_kept, -torch.inf)
    if top_p < 1.0:
        scaled = scaled.masked_fill(_outside_top_p(scaled, top_p), -torch.inf)
    return scaled.softmax(-1)


def _outside_top_p(scaled: Tensor, top_p: float) -> Tensor:
    """Which tokens the likeliest ones of mass ``top_p`` leave out, ``[..., V]``. Token by token
    and not by a threshold: logits of 16 bits tie often, and a tie would be kept whole."""
    ascending, order = scaled.sort(dim=-1, stable=True)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False
    return dropped.scatter(-1, order, dropped)


def draw(weights: Tensor, uniforms: Tensor, likeliest: Tensor) -> Tensor:
    """A token ``[B]`` a row by inverse CDF: ``weights [B, V]``, not negative, of any sum, and
    ``uniforms [B]`` in [0, 1).

    A token of weight zero never comes out. A parallel sum rounds by its order, which CUDA does not
    promise to repeat: in float64, so that neither eager nor a graph draws another token for it. It
    can still step up, or end, where there is no weight. A residual may also be all zero by
    rounding. There the token is ``likeliest [B]``.
    """
    cdf = weights.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)
    token = found.clamp(max=weights.shape[-1] - 1)
    has_weight = weights.gather(-1, token) > 0
    return torch.where(has_weight, token, likeliest[:, None])[:, 0]
