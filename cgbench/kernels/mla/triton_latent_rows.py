"""Norm latent attention's query and latent, and rotate the latent's key, in one Triton launch.

A row has two programs, one for each norm. Their gains are read before the kernel ahead has ended.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.gpu import early, launch_keywords
from cgbench.kernels.mla.latent_rows import LatentNorms, PairRotary


@triton.jit  # type: ignore[untyped-decorator]
def _normed(x, gain, num_columns, epsilon, TYPE: tl.constexpr):
    """Return a normed row, rounded where transformers' modules round."""
    wide = x.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 0) / num_columns + epsilon)
    return (scaled.to(TYPE).to(tl.float32) * gain.to(tl.float32)).to(TYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _rows_kernel(
    x,
    query_weight,
    query_epsilon,
    latent_weight,
    latent_epsilon,
    cos,
    sin,
    query,
    latent,
    x_stride,
    cos_stride,
    sin_stride,
    QUERY_RANK: tl.constexpr,
    RANK: tl.constexpr,
    ROTARY: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        # The next one is a product: it asks for its weights meanwhile.
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    from_row = x + row * x_stride
    TYPE: tl.constexpr = query.dtype.element_ty
    if tl.program_id(1) == 0:
        q = tl.arange(0, BLOCK_Q)
        in_query = q < QUERY_RANK
        query_gain = tl.load(query_weight + q, mask=in_query, other=0.0, cache_modifier=".cg")
        if EARLY:
            gdc_wait()
        plain_query = tl.load(from_row + q, mask=in_query, other=0.0)
        normed_query = _normed(plain_query, query_gain, QUERY_RANK, query_epsilon, TYPE)
        tl.store(query + row * QUERY_RANK + q, normed_query, mask=in_query)
    else:
        c = tl.arange(0, BLOCK_C)
        in_rank = c < RANK
        gain = tl.load(latent_weight + c, mask=in_rank, other=0.0, cache_modifier=".cg")
        if EARLY:
            gdc_wait()
        to_row = latent + row * (RANK + ROTARY)
        plain = tl.load(from_row + QUERY_RANK + c, mask=in_rank, other=0.0)
        normed = _normed(plain, gain, RANK, latent_epsilon, TYPE)
        tl.store(to_row + c, normed, mask=in_rank)
        r = tl.arange(0, BLOCK_R)
        keep = r < ROTARY
        j = r % (ROTARY // 2)
        is_second = r >= ROTARY // 2
        pair = from_row + QUERY_RANK + RANK + 2 * j
        own = tl.load(pair + is_second.to(tl.int32), mask=keep, other=0.0).to(tl.float32)
        other = tl.load(pair + 1 - is_second.to(tl.int32), mask=keep, other=0.0).to(tl.float32)
        across = tl.load(sin + row * sin_stride + j, mask=keep, other=0.0).to(tl.float32)
        along = tl.load(cos + row * cos_stride + j, mask=keep, other=0.0).to(tl.float32)
        rotated = own * along + tl.where(is_second, other, -other) * across
        tl.store(to_row + RANK + r, rotated.to(TYPE), mask=keep)


def latent_rows(x: Tensor, norms: LatentNorms, rotary: PairRotary) -> tuple[Tensor, Tensor]:
    """Compute ``latent_rows.latent_rows`` in one kernel. Both results are contiguous."""
    batch, length, width = x.shape
    query_rank, rank = len(norms.query_weight), len(norms.latent_weight)
    rows = x.reshape(-1, width)
    cos, sin = (each.reshape(-1, each.shape[-1]) for each in rotary)
    assert rows.stride(1) == cos.stride(1) == sin.stride(1) == 1
    query = x.new_empty(batch, length, query_rank)
    latent = x.new_empty(batch, 1, length, width - query_rank)
    size = width - query_rank - rank
    _rows_kernel[(len(rows), 2)](
        rows,
        norms.query_weight,
        norms.query_epsilon,
        norms.latent_weight,
        norms.latent_epsilon,
        cos,
        sin,
        query,
        latent,
        rows.stride(0),
        cos.stride(0),
        sin.stride(0),
        QUERY_RANK=query_rank,
        RANK=rank,
        ROTARY=size,
        BLOCK_Q=triton.next_power_of_2(query_rank),
        BLOCK_C=triton.next_power_of_2(rank),
        BLOCK_R=triton.next_power_of_2(size),
        EARLY=early(x.device),
        num_warps=4,
        **launch_keywords(x.device),
    )
    return query, latent
