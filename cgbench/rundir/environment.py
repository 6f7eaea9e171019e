"""Describe the machine and the software, as the results record them."""

import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cgbench
from cgbench.rundir.record_parts import Scalar

PACKAGES = ("torch", "transformers", "triton", "pandas")


def environment() -> dict[str, Scalar]:
    """Return versions, CPU and GPU. A field that this machine does not have is None."""
    return {
        "cgbench": cgbench.__version__,
        "cgbench_commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        **{package: _version(package) for package in PACKAGES},
        **_gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return ``CGBENCH_COMMIT`` from the environment, for CI that copies files.

    Without it, return the checkout's commit, with ``+dirty`` if files differ.
    """
    if stated := os.environ.get("CGBENCH_COMMIT"):
        return stated
    root = Path(cgbench.__file__).parent.parent
    # A package installed inside some other checkout must not take that one's commit.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+dirty" if changed else "")


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} cores)" if names else None


def _gpu() -> dict[str, Scalar]:
    """Return the number of GPUs that torch finds, and the properties and limits of the
    first one.
    """
    import torch

    count = torch.cuda.device_count()
    first = torch.cuda.get_device_properties(0) if count else None
    return {
        "cuda": torch.version.cuda,
        **_limits(f"GPU-{first.uuid}" if first else None),
        "gpu": first.name if first else None,
        "gpu_capability": f"{first.major}.{first.minor}" if first else None,
        "gpu_memory_bytes": first.total_memory if first else None,
        "gpu_multiprocessors": first.multi_processor_count if first else None,
        "num_gpus": count,
    }


def _limits(uuid: str | None) -> dict[str, Scalar]:
    """Return the driver, and what bounds the GPU's clocks. Telemetry reads the clocks
    themselves.
    """
    import pynvml as nvml

    asked: dict[str, Callable[[Any], Any]] = {
        "driver": lambda _: nvml.nvmlSystemGetDriverVersion(),
        "gpu_max_sm_clock_mhz": lambda gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "gpu_max_memory_clock_mhz": lambda gpu: nvml.nvmlDeviceGetMaxClockInfo(
            gpu, nvml.NVML_CLOCK_MEM
        ),
        "gpu_power_limit_w": lambda gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3,
    }
    found: dict[str, Scalar] = dict.fromkeys(asked)
    if uuid is None:
        return found
    # NVML may be missing, or not give one of them.
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        for name, ask in asked.items():
            with suppress(nvml.NVMLError):
                found[name] = ask(gpu)
        nvml.nvmlShutdown()
    return found
