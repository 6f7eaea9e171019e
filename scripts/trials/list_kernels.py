"""List the kernels of one captured iteration: how often each runs, how long, and what lies between.

    python scripts/trials/list_kernels.py preset:mimo-7b --spec-tokens 3 --batch-sizes 1,64 \
        --output results/FOLDER/kernels

The iteration's graph is replayed under the profiler, at the context that ``cgbench run`` times.
Every kernel of its replays is summed by name. A kernel that is launched early waits for the one
ahead inside its own time, so the times of neighbours overlap. So the table has what a kernel adds:
the time from the end of all kernels before it to its own end. What it adds is 0 or more, and the
sum is the iteration's time. The profiler slows kernels down a little. It needs CUDA.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.door.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.errors import CgbenchError
from cgbench.progress import SILENT
from cgbench.request.choices import Compile, Device, Role
from cgbench.request.parts import CaptureRequest, ModelRequest, WorkloadRequest
from cgbench.request.run_request import RunRequest
from cgbench.words import Scope

if TYPE_CHECKING:
    from cgbench.engine.runner import Runner
    from cgbench.measure.setup import Setup

WARM_UPS, REPLAYS = 4, 8
LONGEST_NAME = 72


@dataclass(frozen=True, slots=True)
class Kernel:
    """A ``Kernel`` is one that ran: its name, and when it began and ended, in microseconds."""

    name: str
    start: float
    end: float


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as of cgbench run")
    parser.add_argument("--spec-tokens", type=int, default=3)
    parser.add_argument("--batch-sizes", default="1", help="requests")
    parser.add_argument("--context-len", type=int, default=1024)
    parser.add_argument("--compile", choices=[*Compile], default=Compile.DEFAULT)
    parser.add_argument("--output", type=Path, help="write NAME.md")
    return parser.parse_args()


def request_of(options: argparse.Namespace) -> RunRequest:
    """The run whose iterations are listed."""
    sizes = tuple(int(word) for word in options.batch_sizes.split(","))
    return RunRequest(
        model=ModelRequest(ref=options.model),
        capture=CaptureRequest(
            spec_tokens=(options.spec_tokens,),
            scopes=(Scope.ITERATION,),
            policy="explicit",
            capture_sizes=sizes,
            role=Role.DECODE,
            compile=Compile(options.compile),
        ),
        workload=WorkloadRequest(
            prompts="random",
            num_prompts=1,
            batch_sizes=sizes,
            max_new_tokens=4,
            context_len=options.context_len,
        ),
        device=Device.CUDA,
    )


def replayed(setup: "Setup", runner: "Runner", batch_size: int) -> list[Kernel]:
    """The kernels of ``REPLAYS`` replays, in order of their start."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from cgbench.engine.prefill import begin_decoding, prefill

    options, spec = setup.options, setup.deployment.spec
    contexts = setup.workload.contexts(batch_size, options.context_len)
    prefilled = prefill(spec, contexts, options.max_num_batched_tokens, options.seed, distinct=True)
    begin_decoding(
        spec,
        runner.state,
        prefilled,
        tokens_left=options.reach,
        ignore_eos=True,
        seed=options.seed,
    )
    for _ in range(WARM_UPS):
        runner.step(batch_size)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(REPLAYS):
            runner.step(batch_size)
        torch.cuda.synchronize()
    kernels = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    ]
    return sorted(kernels, key=lambda kernel: kernel.start)


def added(kernels: Iterable[Kernel]) -> Iterator[tuple[str, float]]:
    """The name of each of ``kernels``, in order of their start, and the microseconds it adds."""
    reached = None
    for kernel in kernels:
        before = kernel.start if reached is None else reached
        reached = max(before, kernel.end)
        yield short(kernel.name), reached - before


def short(name: str) -> str:
    """``name`` without its arguments and templates, as far as a table's column is wide."""
    plain = re.sub(r"\(.*|void ", "", name)
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 3] + "..."


def lines(kernels: Sequence[Kernel], replays: int) -> list[str]:
    """A table by name, of one iteration, by what they add."""
    adding: dict[str, list[float]] = defaultdict(list)
    for name, time in added(kernels):
        adding[name].append(time)
    running: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        running[short(kernel.name)] += kernel.end - kernel.start
    total = sum(sum(each) for each in adding.values())
    rows = sorted(adding.items(), key=lambda item: -sum(item[1]))
    return [
        f"{len(kernels) / replays:.0f} kernels an iteration, {total / replays:.1f} us",
        "",
        "| kernel | an iteration | us each runs | us each adds | us added | of the iteration |",
        "|---|---:|---:|---:|---:|---:|",
        *(
            f"| `{name}` | {len(each) / replays:g} | {running[name] / len(each):.2f} "
            f"| {sum(each) / len(each):.2f} | {sum(each) / replays:.1f} "
            f"| {sum(each) / total:.1%} |"
            for name, each in rows
        ),
    ]


def main() -> None:
    options = parse_arguments()
    use_passive_threads()
    import torch

    from cgbench.measure.setup import Setup

    request = request_of(options)
    setup = prepare(request, SILENT)
    deployment, _ = capture_graphs(setup.deployment, SILENT)
    setup = Setup(deployment, setup.options, setup.workload, setup.notes)
    written = [f"{options.model} on {torch.cuda.get_device_name()}, torch {torch.__version__}"]
    for batch_size in request.workload.batch_sizes:
        for (k, _scope), runner in deployment.runners.items():
            kernels = replayed(setup, runner, batch_size)
            written += ["", f"## k = {k}, batch size {batch_size}", "", *lines(kernels, REPLAYS)]
            print("\n".join(written[-14:]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".md").write_text("\n".join(written) + "\n")


if __name__ == "__main__":
    try:
        main()
    except CgbenchError as error:
        sys.exit(f"error: {error}")
