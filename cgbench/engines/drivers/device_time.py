"""Sum what a profiler saw of the device: busy time, kernels, copies and graph launches."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cgbench.engines.drivers.messages import JsonObject, Profiled

if TYPE_CHECKING:
    from torch.profiler import profile

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

    ``wall_s`` is the wall time of all of them.
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

    has_device = torch.cuda.is_available()
    wanted = ProfilerActivity.CUDA if has_device else ProfilerActivity.CPU
    synchronize()
    with profile(activities=[wanted]) as profiler:
        start = time.perf_counter()
        emitted = [step() for _ in range(steps)]
        synchronize()
        wall_s = time.perf_counter() - start
    totals = [sum(counts) for counts in zip(*emitted, strict=True)]
    try:
        trace = _trace_of(profiler)
    except (AttributeError, OSError, RuntimeError, ValueError) as error:
        # The steps went well, so the engine goes on.
        problem = f"{type(error).__name__}: {error}"
        return Profiled(steps, wall_s / steps, totals, problem=problem)
    return sum_events(trace_events(trace), steps, wall_s, totals)


def _trace_of(profiler: "profile") -> JsonObject:
    """Return the trace of a finished profiler, as it writes it.

    torch's events in memory have other methods in each release, and the file's format is one.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: JsonObject = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    return trace


_ON_DEVICE = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_ON_HOST = frozenset({"cuda_runtime", "cuda_driver"})


def trace_events(trace: JsonObject) -> Iterator[DeviceEvent]:
    """Yield the events of a trace in Chrome's format, whose times are microseconds.

    Ranges that a program has named are left out, because on a device they span idle time too.
    """
    for event in trace.get("traceEvents", ()):
        category = event.get("cat")
        if event.get("ph") == "X" and category in _ON_DEVICE | _ON_HOST:
            start_ns, duration_ns = round(event["ts"] * 1e3), round(event["dur"] * 1e3)
            yield DeviceEvent(event["name"], category in _ON_DEVICE, start_ns, duration_ns)
