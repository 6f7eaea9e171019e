"""Device time of something captured in one CUDA graph, and the file that it is written to."""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch


def graph_seconds(run: Callable[[], object], replays: int) -> float:
    """The median time of ``replays`` replays of ``run``, captured after one warm-up of it."""
    graph = _captured(run)
    try:
        graph.replay()
        return median(_replay_seconds(graph) for _ in range(replays))
    finally:
        graph.reset()


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    # Other threads, a process group's among them, may call the CUDA runtime meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    return graph


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3


def tell(lines: Iterable[str], told: list[str], output: Path | None) -> None:
    """Print each of ``lines`` as it comes, and put it behind ``told`` in the file of ``--output``.

    So a trial that is cut off leaves what it has measured.
    """
    for line in lines:
        print(line, flush=True)
        told.append(line)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("\n".join(told) + "\n", encoding="utf-8")
