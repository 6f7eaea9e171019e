"""Decide where Triton kernels run, and whether they start before the kernel ahead has ended.

They do so on Hopper and later. Programmatic dependent launch hides a launch behind the end of the
kernel ahead. One rule keeps it right. A kernel that is launched so waits (``gdc_wait``) before it
touches memory that those ahead write. It waits for the one ahead, which has itself waited, so for
all of them.

When it lets its successor begin (``gdc_launch_dependents``) is a matter of speed (docs/engine.md).
Most kernels do so once they have waited themselves. Then, when a kernel begins, those before the
one ahead have ended. What they wrote may be read before the wait. It must be read past L1
(``.cg``), which may hold older values. Attention reads its places so.

Norms, sums over ranks and attention's merging let the next kernel begin at once. That kernel reads
nothing but weights before it waits. A kernel that is not launched early begins at the end of the
one ahead.
"""

import functools
from importlib.util import find_spec

import torch

HOPPER = (9, 0)

HAS_TRITON = find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Return whether Triton kernels run on ``device``."""
    return device.type == "cuda" and HAS_TRITON


@functools.cache
def early(device: torch.device) -> bool:
    """Return whether kernels on ``device`` may begin before the one ahead has ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER


def launch_keywords(device: torch.device) -> dict[str, bool]:
    """Return the keywords that a kernel's launch takes on ``device``."""
    return {"launch_pdl": True} if early(device) else {}
