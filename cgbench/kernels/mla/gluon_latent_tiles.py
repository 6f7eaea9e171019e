"""Load a tile of latents, score it, and weigh it: the steps of ``gluon_latent``, in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma


@gluon.jit  # type: ignore[untyped-decorator]
def ask_for_tile(
    j,
    num_cached,
    cached_rows,
    new_rows,
    new_stride,
    num_keys,
    latents,
    rotaries,
    QUERY_LEN: gl.constexpr,
    BLOCK_N: gl.constexpr,
    RANK: gl.constexpr,
    ROTARY: gl.constexpr,
    WARPS: gl.constexpr,
):
    """Begin to copy tile ``j`` to its half of ``latents`` and ``rotaries``.

    The tile behind the cached ones is that of the new rows. Rows that are not there become zeros.
    """
    row_layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    rotary_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    is_new = j >= num_cached
    base = gl.where(is_new, new_rows, cached_rows + j.to(gl.int64) * (BLOCK_N * (RANK + ROTARY)))
    stride = gl.where(is_new, new_stride, RANK + ROTARY)
    limit = gl.where(is_new, QUERY_LEN, num_keys - j * BLOCK_N)
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(1, row_layout))
    c = gl.arange(0, RANK, gl.SliceLayout(0, row_layout))
    async_copy.async_copy_global_to_shared(
        latents.index(j % 2),
        base + (n * stride)[:, None] + c[None, :],
        mask=(n < limit)[:, None] & (c < RANK)[None, :],
    )
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(1, rotary_layout))
    r = gl.arange(0, ROTARY, gl.SliceLayout(0, rotary_layout))
    async_copy.async_copy_global_to_shared(
        rotaries.index(j % 2),
        base + (n * stride)[:, None] + (RANK + r)[None, :],
        mask=(n < limit)[:, None] & (r < ROTARY)[None, :],
    )


@gluon.jit  # type: ignore[untyped-decorator]
def begin_scores(q, q_rotary, latent, rotary, zeros, SWAPPED: gl.constexpr):
    """Begin the products of a tile's keys and the rows, two groups of ``wgmma``."""
    if SWAPPED:
        scores = warpgroup_mma(latent, q.permute((1, 0)), zeros, use_acc=False, is_async=True)
        return warpgroup_mma(rotary, q_rotary.permute((1, 0)), scores, is_async=True)
    else:
        scores = warpgroup_mma(q, latent.permute((1, 0)), zeros, use_acc=False, is_async=True)
        return warpgroup_mma(q_rotary, rotary.permute((1, 0)), scores, is_async=True)


@gluon.jit  # type: ignore[untyped-decorator]
def weigh(
    scores,
    j,
    num_cached,
    num_keys,
    running_max,
    sums,
    scale,
    p_buffer,
    QUERY_LEN: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SCORES: gl.constexpr,
    row_of_tile,
    SWAPPED: gl.constexpr,
):
    """Weigh a tile's keys: leave the weights in ``p_buffer``; return the running softmax."""
    KEYS: gl.constexpr = 0 if SWAPPED else 1
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(1 - KEYS, SCORES))
    s = row_of_tile % QUERY_LEN
    is_new = j >= num_cached
    limit = gl.where(is_new, QUERY_LEN, num_keys - j * BLOCK_N)
    # Of the new rows a query sees those up to its own.
    last = gl.where(is_new, s, BLOCK_N)
    if SWAPPED:
        seen = (n < limit)[:, None] & (n[:, None] <= last[None, :])
    else:
        seen = (n < limit)[None, :] & (n[None, :] <= last[:, None])
    scores = gl.where(seen, scores, float("-inf"))
    # Every tile has a key that all rows see: no maximum is -inf.
    new_max = gl.maximum(running_max, gl.max(scores, KEYS) * scale)
    decay = gl.exp2(running_max - new_max)
    if SWAPPED:
        p = gl.exp2(scores * scale - new_max[None, :])
        sums = sums * decay[None, :] + p
    else:
        p = gl.exp2(scores * scale - new_max[:, None])
        sums = sums * decay[:, None] + p
    p_buffer.store(p.to(p_buffer.dtype))
    return new_max, sums, decay
