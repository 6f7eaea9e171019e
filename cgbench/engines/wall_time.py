"""Measure the wall time of work whose results stay on the device."""

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds of ``count`` calls, one after another. The device is idle before and
    after.
    """
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        work()
    synchronize(device)
    return time.perf_counter() - start
