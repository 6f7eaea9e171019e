"""Sum what a profiler saw of the device: busy time, kernels, copies and graph launches."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from cgbench.engines.drivers.messages import Profiled

NUM_TOP = 12
COPIES = ("Memcpy", "Memset")
GRAPH_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")
KERNEL_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchCooperativeKernel")


class DeviceEvent(NamedTuple):
    """A ``DeviceEvent`` is one event of a profile.

    ``on_device`` is true for what ran on the GPU, and false for a call of the host. Times are
    nanoseconds on one clock.
    """

    name: str
    on_device: bool
    start_ns: int
    duration_ns: int


def sum_events(
    events: Iterable[DeviceEvent], steps: int, wall_s: float, emitted: list[int]
) -> Profiled:
    """Return the sums of ``events`` over ``steps``, each a step.

    ``wall_s`` is the wall time of all of them. Ranges that annotate must be left out before.
    """
    on_device: list[DeviceEvent] = []
    calls: Counter[str] = Counter()
    for event in events:
        if event.on_device:
            on_device.append(event)
        else:
            calls[event.name] += 1
    if not on_device:
        return Profiled(steps, wall_s / steps, emitted)
    kernels = [event for event in on_device if not event.name.startswith(COPIES)]
    return Profiled(
        steps,
        wall_s / steps,
        emitted,
        busy_s=busy_ns(on_device) / steps / 1e9,
        kernel_s=sum(event.duration_ns for event in kernels) / steps / 1e9,
        kernels=len(kernels) / steps,
        copies=(len(on_device) - len(kernels)) / steps,
        graph_launches=sum(calls[name] for name in GRAPH_LAUNCHES) / steps,
        kernel_launches=_launches(calls) / steps,
        top=list(_longest(kernels, steps)),
    )


def busy_ns(events: Sequence[DeviceEvent]) -> int:
    """Return the nanoseconds in which at least one of ``events`` ran: the union of intervals."""
    busy, end = 0, -1
    for event in sorted(events, key=lambda each: each.start_ns):
        start, last = event.start_ns, event.start_ns + event.duration_ns
        if last > end:
            busy += last - max(start, end)
            end = last
    return busy


def _launches(calls: Counter[str]) -> int:
    return sum(count for name, count in calls.items() if name.startswith(KERNEL_LAUNCHES))


def _longest(kernels: Iterable[DeviceEvent], steps: int) -> Iterator[tuple[str, float, float]]:
    total: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for event in kernels:
        total[event.name] += event.duration_ns
        count[event.name] += 1
    for name, duration_ns in total.most_common(NUM_TOP):
        yield name[:120], duration_ns / steps / 1e9, count[name] / steps


def profile_steps(
    step: Callable[[], list[int]], steps: int, synchronize: Callable[[], object]
) -> Profiled:
    """Run ``steps`` under torch's profiler and return their sums.

    ``step`` returns the tokens of each request. ``synchronize`` waits for the device.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    wanted = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        wanted.append(ProfilerActivity.CUDA)
    synchronize()
    with profile(activities=wanted) as profiler:
        start = time.perf_counter()
        emitted = [step() for _ in range(steps)]
        synchronize()
        wall_s = time.perf_counter() - start
    totals = [sum(counts) for counts in zip(*emitted, strict=True)]
    return sum_events(kineto_events(profiler), steps, wall_s, totals)


def kineto_events(profiler: Any) -> Iterator[DeviceEvent]:
    """Yield the events of a finished torch profiler, without the ranges that annotate."""
    from torch._C._autograd import DeviceType

    host = DeviceType.CPU
    for event in profiler.profiler.kineto_results.events():
        if not _annotates(event):
            on_device = event.device_type() != host
            yield DeviceEvent(event.name(), on_device, event.start_ns(), event.duration_ns())


def _annotates(event: Any) -> bool:
    """Return whether an event is a range that a program has named. On a device it spans idle time,
    too.
    """
    return bool(event.is_user_annotation()) or "annotation" in str(event.activity_type())


_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_ON_HOST = frozenset({"cuda_runtime", "cuda_driver"})


def trace_events(trace: dict[str, Any]) -> Iterator[DeviceEvent]:
    """Yield the events of a trace in Chrome's format, whose times are microseconds."""
    for event in trace.get("traceEvents", ()):
        category = event.get("cat")
        if event.get("ph") == "X" and category in _ON_DEVICE | _ON_HOST:
            start_ns, duration_ns = round(event["ts"] * 1e3), round(event["dur"] * 1e3)
            yield DeviceEvent(event["name"], category in _ON_DEVICE, start_ns, duration_ns)
