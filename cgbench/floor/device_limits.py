"""Measure what the device can do at best: bytes read and operations a second.

A floor is a bound, so the best of several kernels and repetitions counts, never a mean. Reads go
through torch's reductions and through a kernel of our own. Products have several shapes.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cgbench.floor.rates import DeviceLimits
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.kernels.gpu import runs_kernels

Work = Callable[[], object]

# Far above any cache. If that much is not free, the next size is tried.
READ_BYTES = {"cuda": (4 << 30, 1 << 30, 1 << 28), "cpu": (1 << 28, 1 << 26)}
# (m, n, k): square, and long in k, because then writing the result costs least.
MATRICES = {
    "cuda": ((8192, 8192, 8192), (4096, 8192, 16384), (8192, 4096, 8192)),
    "cpu": ((1024, 1024, 1024), (512, 1024, 2048)),
}
# As many repetitions as fit, because the first ones raise the clocks.
SECONDS_A_KERNEL = 0.12

CPU_CACHES = "/sys/devices/system/cpu/cpu0/cache"


@functools.cache
def device_limits(
    device: torch.device, dtype: torch.dtype, *, with_fp8: bool = False
) -> DeviceLimits:
    """Measure both rates of ``device``, once a process, in about a second.

    ``with_fp8``: measure that of FP8 products too. A CPU has none, because it multiplies their
    values in float32.
    """
    limits = DeviceLimits(
        read_bandwidth(device),
        matrix_rate(device, dtype),
        _read_rate(device).spread_frac,
        last_cache_bytes(device),
        fp8_rate(device) if with_fp8 and device.type == "cuda" else None,
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return limits


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes read from memory a second.

    It is the best of several reductions of a large tensor, and on CUDA of a kernel that only reads.
    """
    return _read_rate(device).bytes_per_s


@dataclass(frozen=True, slots=True)
class _ReadRate:
    bytes_per_s: float
    spread_frac: float


@functools.cache
def _read_rate(device: torch.device) -> _ReadRate:
    data = _large_tensor(device)
    # A kernel that reads nothing else and writes next to nothing.
    fastest = min((_seconds(work, device) for work in _reads(data)), key=min)
    return _ReadRate(data.nbytes / min(fastest), median(fastest) / min(fastest) - 1)


def last_cache_bytes(device: torch.device) -> int | None:
    """Return the bytes of a GPU's L2, or of a CPU's last cache.

    The CPU's is what Linux states. It is None if Linux states none.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_kernel_size(file) for file in Path(CPU_CACHES).glob("index*/size")]
    return max(sizes, default=None)


def _kernel_size(file: Path) -> int:
    """Return the bytes of a size such as ``32768K``."""
    return int(file.read_text().strip().removesuffix("K")) * 1024


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest of several matrix products in ``dtype``."""
    return max(_rate(shape, device, dtype) for shape in MATRICES[device.type])


def fp8_rate(device: torch.device) -> float:
    """Return the operations a second of the fastest of several products of FP8 matrices.

    They have one scale each, and no float32 sums between. So no product with scales of blocks is
    faster.
    """
    return max(_fp8_rate(shape, device) for shape in MATRICES[device.type])


def _fp8_rate(shape: tuple[int, int, int], device: torch.device) -> float:
    m, n, k = shape
    a, weight = (torch.randn(rows, k, device=device).to(FP8) for rows in (m, n))
    one = torch.ones((), device=device)

    def multiply() -> Tensor:
        return torch._scaled_mm(
            a, weight.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return 2.0 * m * n * k / _best_seconds(multiply, device)


def _large_tensor(device: torch.device) -> Tensor:
    sizes = READ_BYTES[device.type]
    for num_bytes in sizes[:-1]:
        try:
            return torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
        except torch.OutOfMemoryError:
            continue
    return torch.ones(sizes[-1] // 4, dtype=torch.float32, device=device)


def _reads(data: Tensor) -> Iterator[Work]:
    by_row = data.view(-1, 1 << 14)
    yield lambda: data.sum()
    yield lambda: data.amax()
    yield lambda: by_row.sum(1)
    if runs_kernels(data.device):
        # Imported here, because triton is there only beside a CUDA build of torch.
        from cgbench.kernels.triton_read import read

        as_words = data.view(torch.int32)
        yield lambda: read(as_words)


def _rate(shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> float:
    m, n, k = shape
    # Numbers like a model's, because on zeros a device draws less power and clocks higher.
    a = torch.randn(m, k, device=device, dtype=torch.float32).to(dtype)
    # [out, in], as a layer keeps its weight.
    weight = torch.randn(n, k, device=device, dtype=torch.float32).to(dtype)
    out = torch.empty(m, n, device=device, dtype=dtype)
    return 2.0 * m * n * k / _best_seconds(lambda: torch.mm(a, weight.t(), out=out), device)


def _best_seconds(work: Work, device: torch.device) -> float:
    """Return the seconds of the fastest repetition."""
    return min(_seconds(work, device))


def _seconds(work: Work, device: torch.device) -> list[float]:
    """Return the seconds of the repetitions that fit in the time.

    There are two at least, after one that warms up.
    """
    work()
    timed = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    end = time.perf_counter() + SECONDS_A_KERNEL
    seconds = [timed(work), timed(work)]
    while time.perf_counter() < end:
        seconds.append(timed(work))
    return seconds


def _cpu_seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_seconds(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
