"""What a tensor parallel run says of itself: what is divided, and what joins its GPUs."""

from itertools import combinations
from typing import TypedDict

import pynvml
import torch
import torch.distributed as dist

from cgbench.models.loader import LoadedModel
from cgbench.models.shards import HEAD_OUTPUT, LM_HEAD
from cgbench.parallel.inboxes import opened_inboxes, why_no_inboxes
from cgbench.parallel.ranks import tp_size

NO_NVLINK = "no NVLink between the {} GPUs: collectives go over PCIe, and their share shows it"


class ParallelFacts(TypedDict):
    """``model.tensor_parallel`` of a record; ``collectives`` is filled as groups are measured."""

    tp_size: int
    backend: str
    links: str
    few_numbers: str
    target: str
    lm_head: str
    collectives: list[object]
    head: str | None


def parallel_facts(model: LoadedModel) -> ParallelFacts:
    """How the ranks share the model, for the record."""
    is_divided = model.head is not None and any(name != HEAD_OUTPUT for name in model.head.splits)
    return {
        "tp_size": tp_size(),
        "backend": dist.get_backend(),
        "links": links(),
        "few_numbers": few_numbers(),
        "target": "transformers' tensor parallel plan, embedding whole",
        "lm_head": "divided by vocabulary" if LM_HEAD in model.target.splits else "whole",
        "collectives": [],
        "head": None if model.head is None else "divided" if is_divided else "whole",
    }


def few_numbers() -> str:
    """By what the ranks exchange few numbers, as a decode step's are."""
    if (inboxes := opened_inboxes()) is None:
        return f"{dist.get_backend()}: {why_no_inboxes()}"
    return f"a kernel of cgbench's own, up to {inboxes.max_bytes:,} bytes"


def link_notes() -> list[str]:
    """What to tell the user of the links: nothing where they are as they should be."""
    return [NO_NVLINK.format(tp_size())] if links() == "pcie" else []


def links() -> str:
    """``none`` where no GPU has to reach another, ``nvlink`` where every pair of this machine's
    ranks has one, else ``pcie``; ``unknown`` where NVML does not tell."""
    if tp_size() == 1 or dist.get_backend() != "nccl":
        return "none"
    try:
        return "nvlink" if _all_linked(torch.cuda.device_count()) else "pcie"
    except pynvml.NVMLError:
        return "unknown"


def _all_linked(num_devices: int) -> bool:
    pynvml.nvmlInit()
    try:
        ids = [torch.cuda.get_device_properties(i).uuid for i in range(min(num_devices, tp_size()))]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{each}") for each in ids]
        states = [
            pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            for one, other in combinations(handles, 2)
        ]
        return all(state == pynvml.NVML_P2P_STATUS_OK for state in states)
    finally:
        pynvml.nvmlShutdown()
