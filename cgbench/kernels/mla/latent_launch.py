"""Prepare the launch of an attention kernel over latents: what Triton's and Gluon's share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.triton_splits import Parts

LOG2_E = 1.4426950408889634


class LatentLaunch(NamedTuple):
    """A ``LatentLaunch`` holds a kernel's arguments and keywords, and what it fills.

    ``whole [B, H, S, rank]`` is filled if there is one split, and ``parts`` otherwise.
    """

    whole: Tensor
    parts: Parts
    arguments: tuple[Any, ...]
    keywords: dict[str, int]


def latent_launch(
    latents: Tensor,
    absorbed: Tensor,
    new: LatentInput,
    slots: Tensor,
    positions: Tensor,
    room: int,
    num_splits: int,
) -> LatentLaunch:
    """Return a launch of ``num_splits``. The rest is as in ``triton_latent.attend``."""
    batch, num_heads, query_len, rank = absorbed.shape
    num_rows = num_heads * query_len
    whole = torch.empty_like(absorbed) if num_splits == 1 else absorbed
    parts = Parts.empty(batch, num_splits, num_rows, rank, absorbed.device)
    rotary = new.plain_rotary
    # Of a rotated query neither table is read.
    cos, sin = (each.flatten(0, 1) for each in new.pairs or (positions, positions))
    arguments = (
        absorbed,
        rotary,
        new.latent,
        latents,
        slots,
        positions,
        whole,
        *parts,
        cos,
        sin,
        new.scaling * LOG2_E,
        room,
        num_splits,
        cos.stride(0),
        sin.stride(0),
        *rotary.stride()[:3],
        new.latent.stride(0),
        new.latent.stride(2),
    )
    keywords = {
        "NUM_ROWS": num_rows,
        "QUERY_LEN": query_len,
        "RANK": rank,
        "ROTARY": rotary.shape[3],
        "PAIRED": new.pairs is not None,
        "IS_WHOLE": num_splits == 1,
        "EARLY": early(absorbed.device),
        **launch_keywords(absorbed.device),
    }
    return LatentLaunch(whole, parts, arguments, keywords)
