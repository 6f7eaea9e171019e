"""Make distributions over the vocabulary and draw from them, in shapes that a graph can capture.

Nothing here reads a device value on the host. So there is no ``multinomial`` and no boolean
indexing.
"""

import torch
from torch import Tensor


def distribution(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """Return the probabilities ``[..., V]`` to sample from, in float32, of ``logits [..., V]``.

    Temperature applies first, then top-k, then top-p, as in transformers' logits warpers. Tokens
    that tie with the k-th are kept, and top-p keeps one at least. Logits are sorted only if top-p
    is below 1.
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
    """Return which tokens the likeliest ones of mass ``top_p`` leave out, ``[..., V]``.

    It goes token by token and not by a threshold. Logits of 16 bits tie often, and a threshold
    would keep a tie whole.
    """
    ascending, order = scaled.sort(dim=-1, stable=True)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False
    return dropped.scatter(-1, order, dropped)


def draw(weights: Tensor, uniforms: Tensor, likeliest: Tensor) -> Tensor:
    """Draw a token ``[B]`` a row by inverse CDF.

    ``weights [B, V]`` are not negative and have any sum. ``uniforms [B]`` are in [0, 1). A token of
    weight zero never comes out.

    A parallel sum rounds by its order, which CUDA does not promise to repeat. So the sum is in
    float64, and neither eager nor a graph draws another token because of it. The sum can still step
    up, or end, at a token without weight. Rounding may also leave a residual all zero. In both
    cases the token is ``likeliest [B]``.
    """
    cdf = weights.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)
    token = found.clamp(max=weights.shape[-1] - 1)
    has_weight = weights.gather(-1, token) > 0
    return torch.where(has_weight, token, likeliest[:, None])[:, 0]
