"""Describe a tensor parallel run for its record: what is divided, and what joins its GPUs."""

from itertools import combinations

import pynvml
import torch
import torch.distributed as dist

from cgbench.models.division.splits import HEAD_OUTPUT, LM_HEAD
from cgbench.models.loader import LoadedModel
from cgbench.parallel.inboxes import opened_inboxes, why_no_inboxes
from cgbench.parallel.ranks import Ranks
from cgbench.rundir.record_parts import ParallelFacts

NO_NVLINK = "no NVLink between the {} GPUs: collectives go over PCIe, and their share shows it"


def parallel_facts(model: LoadedModel) -> ParallelFacts:
    """Return how the ranks share the model, as the record keeps it."""
    is_divided = model.head is not None and any(name != HEAD_OUTPUT for name in model.head.splits)
    return {
        "tp_size": model.ranks.size,
        "backend": dist.get_backend(),
        "links": links(model.ranks),
        "few_numbers": few_numbers(),
        "target": _target_words(model),
        "lm_head": "divided by vocabulary" if LM_HEAD in model.target.splits else "whole",
        "collectives": [],
        "head": None if model.head is None else "divided" if is_divided else "whole",
        "kv_copies": model.skeleton.kv_copies(model.ranks.size),
    }


def _target_words(model: LoadedModel) -> str:
    """Return how the target is divided, in words."""
    plan = "transformers' tensor parallel plan, embedding whole"
    return f"{plan}, gated delta nets by heads" if model.state_shapes else plan


def few_numbers() -> str:
    """Return what carries the small exchanges between ranks, such as those of a decode step."""
    if (inboxes := opened_inboxes()) is None:
        return f"{dist.get_backend()}: {why_no_inboxes()}"
    return f"a kernel of cgbench's own, up to {inboxes.max_bytes:,} bytes"


def link_notes(ranks: Ranks) -> list[str]:
    """Return a note for the user if the GPUs are joined by PCIe alone, else nothing."""
    return [NO_NVLINK.format(ranks.size)] if links(ranks) == "pcie" else []


def links(ranks: Ranks) -> str:
    """Return what joins the GPUs of this machine's ranks.

    ``none``: no GPU has to reach another. ``nvlink``: every pair has an NVLink. ``pcie``: some pair
    has none. ``unknown``: NVML gave no answer.
    """
    if ranks.size == 1 or dist.get_backend() != "nccl":
        return "none"
    try:
        return "nvlink" if _all_linked(min(torch.cuda.device_count(), ranks.size)) else "pcie"
    except pynvml.NVMLError:
        return "unknown"


def _all_linked(num_devices: int) -> bool:
    pynvml.nvmlInit()
    try:
        ids = [torch.cuda.get_device_properties(i).uuid for i in range(num_devices)]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{each}") for each in ids]
        states = [
            pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            for one, other in combinations(handles, 2)
        ]
        return all(state == pynvml.NVML_P2P_STATUS_OK for state in states)
    finally:
        pynvml.nvmlShutdown()
