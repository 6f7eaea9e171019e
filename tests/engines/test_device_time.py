"""Sums of a profile: busy time is the union of intervals, and ranges that annotate are no work."""

import json
from pathlib import Path

import pytest
import torch

from cgbench.engines.drivers import device_time
from cgbench.engines.drivers.device_time import (
    DeviceEvent,
    busy_ns,
    profile_steps,
    sum_events,
    trace_events,
)

RECORDED = Path(__file__).parent / "step_trace.json"


def kernel(start_us: float, duration_us: float, name: str = "gemm") -> DeviceEvent:
    return DeviceEvent(name, True, round(start_us * 1e3), round(duration_us * 1e3))


def test_what_overlaps_is_busy_once() -> None:
    events = [kernel(0, 10), kernel(5, 10), kernel(6, 1), kernel(20, 5), kernel(25, 5)]
    assert busy_ns(events) == 25_000
    assert busy_ns(events[::-1]) == 25_000
    assert busy_ns([]) == 0


def test_a_long_kernel_covers_the_later_ones() -> None:
    assert busy_ns([kernel(0, 100), kernel(10, 10), kernel(90, 20)]) == 110_000


def test_sums_are_a_step_and_copies_are_no_kernels() -> None:
    events = [
        kernel(0, 10),
        kernel(10, 30, "attention"),
        kernel(40, 4, "Memcpy DtoH (Device -> Pinned)"),
        kernel(100, 10),
        DeviceEvent("cudaGraphLaunch", False, 0, 5000),
        DeviceEvent("cudaLaunchKernelExC", False, 0, 5000),
        DeviceEvent("cuLaunchKernel", False, 0, 5000),
        DeviceEvent("aten::mm", False, 0, 5000),
    ]
    found = sum_events(events, steps=2, wall_s=0.5, emitted=[2, 4])
    assert found.busy_s is not None and abs(found.busy_s - 27e-6) < 1e-12
    assert found.kernel_s is not None and abs(found.kernel_s - 25e-6) < 1e-12
    assert (found.kernels, found.copies) == (1.5, 0.5)
    assert (found.graph_launches, found.kernel_launches) == (0.5, 1.0)
    assert found.wall_s == 0.25 and found.emitted == [2, 4]
    assert [name for name, _, _ in found.top] == ["attention", "gemm"]
    assert found.top[1][2] == 1.0


def test_without_device_events_nothing_is_known_of_the_device() -> None:
    found = sum_events([DeviceEvent("aten::mm", False, 0, 1)], 1, 0.1, [1])
    assert found.busy_s is None and found.kernels is None and found.graph_launches is None


def test_a_trace_is_summed_as_events_are() -> None:
    """The trace is of two steps, with two streams that overlap, written as torch writes one."""
    found = sum_events(trace_events(json.loads(RECORDED.read_text())), 2, 0.01, [2])
    assert found.busy_s is not None and abs(found.busy_s - 45.0e-6) < 1e-12
    assert found.kernel_s is not None and abs(found.kernel_s - 53.5e-6) < 1e-12
    assert (found.kernels, found.copies, found.graph_launches) == (2.0, 0.5, 1.0)


def test_a_profile_on_a_cpu_makes_the_steps_and_knows_no_device() -> None:
    made: list[int] = []

    def step() -> list[int]:
        made.append(1)
        torch.ones(4, 4) @ torch.ones(4, 4)
        return [1, 2]

    found = profile_steps(step, 3, lambda: None)
    assert len(made) == 3 and found.emitted == [3, 6] and found.wall_s > 0
    if not torch.cuda.is_available():
        assert found.busy_s is None


def test_a_trace_that_cannot_be_read_leaves_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(profiler: object) -> dict[str, object]:
        raise AttributeError("no attribute activity_type")

    monkeypatch.setattr(device_time, "_trace_of", fail)
    found = profile_steps(lambda: [1], 2, lambda: None)
    assert found.emitted == [2] and found.busy_s is None
    assert found.problem == "AttributeError: no attribute activity_type"
