"""How the Triton kernels are launched: on Hopper and later, before the kernel ahead has ended.

Programmatic dependent launch hides a launch behind the end of the kernel ahead. The rule that keeps
it right: a kernel that is launched so waits (``gdc_wait``) before it touches memory that the one
ahead writes, and only then lets its successor begin (``gdc_launch_dependents``). So when a kernel
begins, the one ahead has waited, and those before it have ended: what they wrote may be read at
once, past L1 (``.cg``), which may hold older values. One that is not launched so begins at the end
of the one ahead, as ever.
"""

import functools
from typing import Any

import torch

HOPPER = (9, 0)


@functools.cache
def early(device: torch.device) -> bool:
    """Whether kernels on ``device`` may begin before the one ahead has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def launch_keywords(device: torch.device) -> dict[str, Any]:
    """What a launch is told on ``device``."""
    return {"launch_pdl": True} if early(device) else {}
