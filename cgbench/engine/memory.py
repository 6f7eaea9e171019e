"""Refuse a run that does not fit the device's memory, before anything is allocated."""

import os

import torch

from cgbench.engine.prefill_memory import prefill_bytes
from cgbench.engine.recurrent import cache_bytes
from cgbench.errors import OutOfMemoryError
from cgbench.models.loading_plan import LoadingPlan
from cgbench.request.options import RunOptions


def check_memory(plan: LoadingPlan, options: RunOptions) -> None:
    """Check that weights, KV, recurrent state and prefill fit the device's memory.

    This is a lower bound. Graphs, workspaces and prompts longer than ``--context-len`` come on top.
    So does what each rank of a tensor parallel run holds whole: the embedding, norms and hidden
    states. Raise ``OutOfMemoryError`` with the bytes needed and available.
    """
    dtype, skeleton = plan.request.dtype, plan.skeleton
    num_ranks = plan.request.ranks.size
    weights = plan.least_weight_bytes
    slots = options.max_batch_size + 1
    tokens = slots * (options.context_len + options.to_decode)
    kv = tokens * skeleton.kv_bytes_per_token(dtype, num_ranks, plan.kv_format)
    query_len = options.max_spec_tokens + 1
    # Ranks divide the heads of recurrent state.
    kv += cache_bytes(skeleton.kv.state_shapes, slots, query_len, dtype) // num_ranks
    num_prompts = prompts_at_once(options)
    prefill = prefill_bytes(
        skeleton.target,
        num_prompts,
        options.context_len,
        keeps_latents=skeleton.kv.keeps_latents,
    )
    prefill //= num_ranks
    available = available_bytes(plan.request.device, num_ranks)
    needed = weights + kv + prefill
    if needed > available:
        budget = ["--max-num-batched-tokens"] if num_prompts > 1 else []
        *flags, last = ("--max-num-seqs", "--context-len", *budget, *options.reach_flags)
        whose = "the device" if num_ranks == 1 else f"each of {num_ranks} ranks"
        copies = skeleton.kv_copies(num_ranks)
        copied = f" with each KV head on {copies} ranks" if copies > 1 else ""
        raise OutOfMemoryError(
            f"MODEL {plan.request.ref}: {whose} needs at least {needed:,} bytes (weights "
            f"{weights:,}, KV of {slots} slots {kv:,}{copied}, prefill of {num_prompts} prompts "
            f"{prefill:,}), but there are {available:,}. "
            f"Give a smaller MODEL, a larger --tp, or lower {', '.join(flags)} or {last}"
        )


def prompts_at_once(options: RunOptions) -> int:
    """Return how many prompts of ``--context-len`` the largest wave of a prefill holds.

    ``engine.prefill`` forms the waves.
    """
    within = options.max_num_batched_tokens // options.context_len
    return max(1, min(max(options.batch_sizes), within))


def available_bytes(device: torch.device, num_ranks: int) -> int:
    """Return the free memory of a CUDA device.

    For a CPU it is the share of one of ``num_ranks`` ranks in the machine's whole memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // num_ranks
