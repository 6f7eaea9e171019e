"""Draw balanced routing's experts of all layers in one Triton kernel. See ``expert_draw``."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from cgbench.kernels.expert_draw import STEP, ExpertShape
from cgbench.kernels.gpu import early, launch_keywords

TOKENS_A_PROGRAM = 32

_STEP = tl.constexpr(STEP)


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit(do_not_specialize=["num_tokens", "query_len", "start"])  # type: ignore[untyped-decorator]
def _draw_kernel(
    keys,
    positions,
    layers,
    out,
    num_tokens,
    query_len,
    start,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    SLOTS: tl.constexpr,
    TOKENS: tl.constexpr,
    EARLY: tl.constexpr,
) -> None:
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    layer = tl.program_id(1)
    is_token = token < num_tokens
    key = tl.load(keys + token // query_len, mask=is_token, other=0).to(tl.uint32)
    position = tl.load(positions + token, mask=is_token, other=0).to(tl.uint32)
    number = tl.load(layers + layer).to(tl.uint32)
    by_token = _mixed(_mixed(key) + position * _STEP)
    by_layer = _mixed(start.to(tl.uint32) + number * _STEP)
    state = _mixed(by_token ^ by_layer)
    column = tl.arange(0, SLOTS)
    taken = tl.full([TOKENS, SLOTS], NUM_EXPERTS, tl.int32)
    for slot in tl.static_range(TOP_K):
        drawn = _mixed(state + (((slot + 1) * _STEP) & 0xFFFFFFFF))
        rank = ((drawn.to(tl.uint64) * (NUM_EXPERTS - slot)) >> 32).to(tl.int32)
        expert = rank
        for _ in tl.static_range(slot):
            expert = rank + tl.sum((taken <= expert[:, None]).to(tl.int32), 1)
        taken = tl.where(column[None, :] == slot, expert[:, None], taken)
    row = (layer * num_tokens + token).to(tl.int64)
    places = out + row[:, None] * TOP_K + column[None, :]
    tl.store(places, taken.to(tl.int64), mask=is_token[:, None] & (column[None, :] < TOP_K))


def draw(
    keys: Tensor, positions: Tensor, layers: Tensor, start: int, shape: ExpertShape, out: Tensor
) -> None:
    """Draw experts as ``expert_draw.draw_by_torch`` does, in one kernel."""
    num_tokens = positions.numel()
    device = positions.device
    _draw_kernel[(triton.cdiv(num_tokens, TOKENS_A_PROGRAM), len(layers))](
        keys,
        positions.contiguous(),
        layers,
        out,
        num_tokens,
        positions.shape[1],
        start,
        NUM_EXPERTS=shape.num_experts,
        TOP_K=shape.top_k,
        SLOTS=triton.next_power_of_2(shape.top_k),
        TOKENS=TOKENS_A_PROGRAM,
        EARLY=early(device),
        num_warps=1,
        **launch_keywords(device),
    )
