"""Read what the GPU did while a block ran, from NVML, between blocks and never inside one.

A CPU has no telemetry. Its clocks, its load and its other processes change too fast for a reading
between blocks to describe a block.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading is the state of a GPU at one moment.

    ``reasons`` are what holds its clocks back. ``processes`` are ids, as the driver counts them.
    What the GPU does not report is None, or empty.
    """

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    reasons: frozenset[str] = frozenset()
    processes: frozenset[int] = frozenset()


# nvml.h, nvmlClocksEventReasons*: bit to name. They are also named "throttle reasons".
REASONS = {
    0x1: "gpu_idle",
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
}


class Telemetry(Protocol):
    """Telemetry reads the device that is measured on."""

    def read(self) -> Reading | None:
        """Return the device's state now, or None if nothing reports it. Takes milliseconds."""
        ...


class NoTelemetry:
    """This telemetry serves a CPU, or a machine without NVML. Every block is taken as it is."""

    def read(self) -> None:
        return None


class Watch:
    """A watch is telemetry over a run.

    It keeps the ``latest`` reading. ``at_start`` are the processes that were on the GPU when the
    run began to measure, this one among them.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.latest = telemetry.read()
        self.at_start: frozenset[int] = self.latest.processes if self.latest else frozenset()

    def read(self) -> Reading | None:
        """Take a new reading, which is the ``latest`` from now on."""
        self.latest = self._telemetry.read()
        return self.latest


@dataclass(frozen=True, slots=True)
class NvmlTelemetry:
    """This telemetry reads one GPU by its NVML handle.

    What this GPU or driver does not report is None in a reading.
    """

    nvml: Any
    handle: Any

    def read(self) -> Reading:
        nvml, handle = self.nvml, self.handle
        power_mw = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return Reading(
            sm_clock_mhz=self._ask(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._ask(
                lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
            ),
            temperature_c=self._ask(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            power_w=None if power_mw is None else power_mw / 1e3,
            reasons=frozenset(
                _names(self._ask(lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0)
            ),
            processes=frozenset(
                each.pid
                for each in self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
                or ()
            ),
        )

    def _ask(self, query: Callable[[], Any]) -> Any:
        with suppress(self.nvml.NVMLError):
            return query()
        return None


def _names(mask: int) -> Iterator[str]:
    return (name for bit, name in REASONS.items() if mask & bit)


@contextmanager
def open_telemetry(device: torch.device) -> Iterator[Telemetry]:
    """Open the telemetry of ``device`` for as long as the context lasts."""
    if device.type != "cuda":
        yield NoTelemetry()
        return
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield NoTelemetry()
        return
    try:
        yield _of_device(pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _of_device(nvml: Any, device: torch.device) -> Telemetry:
    """Return a GPU's telemetry by UUID.

    CUDA_VISIBLE_DEVICES numbers GPUs differently from NVML.
    """
    uuid = torch.cuda.get_device_properties(device).uuid
    try:
        return NvmlTelemetry(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
    except nvml.NVMLError:
        return NoTelemetry()
