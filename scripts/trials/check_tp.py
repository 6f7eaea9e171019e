"""Several GPUs in one command: audits, the table of shapes, and start-to-exit cycles.

    python scripts/trials/check_tp.py --output results/FOLDER \
        [--parts audit,table,cycles] [--only NAMES]

``audit``: the default model and MiMo's shape at N; writes ``audit-MODEL-tpN.json``. ``table``:
MiMo's shape and qwen3-32b at tp 1 and N, and glm-4.5-air, which one GPU cannot hold, at N: eager,
phase and iteration, batch 1 to 64, MiMo's head divided and whole. Each leaves a run directory,
MODEL-tpN or MODEL-tpN-whole, and ``tp.md`` is made of those that are there; ``--only`` measures
those named. ``cycles``: start, capture, run and exit, ``--cycles`` times in a row, each within a
time limit, ranks in fresh processes that are forked with torch imported. Runs that are complete
are not measured again, cycles are. Exit code 1 where a command failed.
"""

import argparse
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pandas as pd

from cgbench.cli.values import parse_names
from cgbench.door.prepare import use_passive_threads
from cgbench.errors import BadInputError, CgbenchError
from cgbench.inputs import check_known
from cgbench.parallel.launch import run_on_ranks
from cgbench.progress import SILENT
from cgbench.request.choices import Device
from cgbench.request.parts import SharingRequest, TimingRequest, WorkloadRequest
from cgbench.request.run_request import RunRequest
from cgbench.rundir.store import RunDirectory
from cgbench.words import Status

SPEC_TOKENS = 3
BATCH_SIZES = "1,2,4,8,16,32,64"
TABLE_MODELS = ("preset:mimo-7b", "preset:qwen3-32b")
BIG_MODEL = "preset:glm-4.5-air"
# By model, the most requests at once.
AUDITED = {"default": 8, TABLE_MODELS[0]: 4}
TARGET_RATIO = 0.80
# Of random weights: they are decoded for their acceptance, which is synthetic.
MAX_NEW_TOKENS = 16
# A block: eager takes up to 100 ms an iteration, and eight rounds at least.
ITERATIONS = 8
CYCLE_LIMIT_S = 120

COLUMNS = ["scope", "batch_size", "iteration_p50_ms", "collectives_p50_ms", "speedup_vs_eager"]


def cgbench(*words: object, stdout: TextIO | None = None) -> bool:
    """Run a command, its output shown or written; whether it ended well."""
    command = [sys.executable, "-m", "cgbench", *map(str, words)]
    print("+", *command[2:], flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, stdout=stdout).returncode
    print(f"  exit {code}, {time.perf_counter() - start:.1f} s", flush=True)
    return code == 0


def run_forked(request: RunRequest, folder: Path, *, limit_s: int) -> None:
    """A run whose ranks are forked from a server that has torch imported.

    Raises ``CgbenchError`` where the run fails, and ``TimeoutError`` where it takes longer.
    """
    from cgbench.door.run import measure

    def give_up(*_: object) -> None:
        raise TimeoutError(f"a cycle took over {limit_s} s")

    ranks = request.sharing.num_ranks
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(limit_s)
    try:
        run_on_ranks(
            ranks,
            request.device,
            measure,
            request,
            folder,
            SILENT,
            resume=False,
            start_method="forkserver",
        )
    finally:
        signal.alarm(0)


def cycle_request(options: argparse.Namespace) -> RunRequest:
    """The shortest run that starts, captures, measures and ends."""
    return RunRequest(
        # Of the default prompts there are so many that they would be most of a cycle.
        workload=WorkloadRequest(
            prompts="random", batch_sizes=(2,), max_new_tokens=8, context_len=16
        ),
        timing=TimingRequest(iterations=2, max_time_s=0.0),
        sharing=SharingRequest(tp=options.tp),
        device=Device(options.device),
    )


def audit(options: argparse.Namespace) -> bool:
    """Every check on the shipped model and, at a few sizes, on MiMo's shape."""
    audited = [_audit(model, size, options) for model, size in AUDITED.items()]
    return all(audited)


def _audit(model: str, max_num_seqs: int, options: argparse.Namespace) -> bool:
    ranks = ("--tp", options.tp, "--device", options.device)
    flags = ("--spec-tokens", SPEC_TOKENS, "--compile", options.compile)
    with open(options.output / f"audit-{name_of(model)}-tp{options.tp}.json", "w") as file:
        return cgbench(
            "audit", model, *ranks, *flags, "--max-num-seqs", max_num_seqs, "--json", stdout=file
        )


@dataclass(frozen=True)
class Run:
    """One run directory of the table; ``head`` is where it lies at tp over 1."""

    model: str
    tp: int
    head: str = "divided"

    @property
    def name(self) -> str:
        return f"{name_of(self.model)}-tp{self.tp}{'-whole' if self.head == 'whole' else ''}"


def name_of(model: str) -> str:
    return model.removeprefix("preset:")


def runs(tp: int) -> list[Run]:
    """Of the whole table, in its order."""
    small, medium = TABLE_MODELS
    return [
        Run(small, 1),
        Run(small, tp),
        Run(small, tp, "whole"),
        Run(medium, 1),
        Run(medium, tp),
        Run(BIG_MODEL, tp),
    ]


def measure_all(options: argparse.Namespace) -> bool:
    asked = [run for run in runs(options.tp) if not options.only or run.name in options.only]
    measured = [measure(run, options) for run in asked]
    return all(measured)


def measure(run: Run, options: argparse.Namespace) -> bool:
    """One run directory, unless it is complete."""
    folder = options.output / run.name
    if (folder / "latency.md").exists():
        return True
    resume = ["--resume"] if (folder / "run.json").exists() else []
    flags = ("--spec-tokens", SPEC_TOKENS, "--batch-sizes", options.batch_sizes)
    sizes = ("--context-len", options.context_len, "--max-new-tokens", MAX_NEW_TOKENS)
    blocks = ("--iterations", ITERATIONS)
    limit = ("--max-time", options.max_time, "--compile", options.compile)
    ranks = ("--tp", run.tp, "--tp-head", run.head, "--device", options.device)
    return cgbench(
        "run", run.model, *flags, *sizes, *blocks, *limit, *ranks, "--output", folder, *resume
    )


def cycle(options: argparse.Namespace) -> bool:
    """Start, capture, run, exit, again and again; stops at the first that fails or hangs."""
    use_passive_threads()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["cgbench.measure.setup"])
    seconds: list[float] = []
    shutil.rmtree(options.output / "cycles", ignore_errors=True)
    for number in range(1, options.cycles + 1):
        folder = options.output / "cycles" / f"{number:02d}"
        start = time.perf_counter()
        try:
            run_forked(cycle_request(options), folder, limit_s=CYCLE_LIMIT_S)
        except CgbenchError as error:
            print(f"cycle {number} of {options.cycles} failed: {error}")
            return False
        seconds.append(time.perf_counter() - start)
        if not is_good(folder):
            print(f"cycle {number} of {options.cycles} failed: a cell is not ok")
            return False
    text = (
        f"{options.cycles} cycles of start, capture, run and exit at tp {options.tp}, none hung: "
        f"{min(seconds):.1f} to {max(seconds):.1f} s each\n"
    )
    (options.output / "cycles.md").write_text(text)
    print(text)
    return True


def is_good(folder: Path) -> bool:
    """Whether every cell of a run was measured."""
    return set(RunDirectory.open(folder).latency()["status"]) == {Status.OK}


def rows_of(folder: Path) -> pd.DataFrame:
    """A run's cells at k, with the median of their collectives alone (empty at tp 1)."""
    directory = RunDirectory.open(folder)
    frame = directory.latency().query(f"spec_tokens == {SPEC_TOKENS}")
    samples = directory.samples().query("stage == 'collectives'")
    keys = ["scope", "spec_tokens", "batch_size"]
    alone = (samples.groupby(keys)["gpu_s"].median() * 1e3).rename("collectives_p50_ms")
    return frame.join(alone, on=keys)[COLUMNS]


def table(options: argparse.Namespace) -> str:
    """Every run that is in the output folder, a row a scope and batch size."""
    parts = [
        "| model | tp | head | scope | batch [req] | iteration p50 [ms] | collectives [ms] "
        "| share | vs eager | vs tp 1 |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    alone: dict[tuple[str, str, int], float] = {}
    for run in runs(options.tp):
        folder = options.output / run.name
        if not (folder / "latency.md").exists():
            continue
        for row in rows_of(folder).to_dict("records"):
            scope, batch_size = row["scope"], row["batch_size"]
            key, latency = (run.model, scope, batch_size), row["iteration_p50_ms"]
            collectives = row["collectives_p50_ms"]
            if run.tp == 1:
                alone[key] = latency
            parts.append(
                f"| {run.model} | {run.tp} | {run.head if run.tp > 1 else '-'} | {scope} "
                f"| {batch_size} | {latency:.3f} | {number(collectives)} "
                f"| {number(collectives / latency)} "
                f"| {number(row['speedup_vs_eager'])} | {ratio(latency, alone.get(key))} |"
            )
    return "\n".join(parts) + "\n"


def number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"


def ratio(latency: float, base: float | None) -> str:
    return "" if base is None else f"{latency / base:.2f}"


def verdict(options: argparse.Namespace) -> str:
    """The one number asked for: MiMo's captured iteration at batch 1, of tp 1's."""
    folders = [options.output / Run(TABLE_MODELS[0], tp).name for tp in (1, options.tp)]
    if not all((folder / "latency.md").exists() for folder in folders):
        return ""
    at_1 = "scope == 'iteration' and batch_size == 1"
    one, shared = (rows_of(f).query(at_1)["iteration_p50_ms"].item() for f in folders)
    return (
        f"\n{TABLE_MODELS[0]}, batch 1, k = {SPEC_TOKENS}, captured: {shared:.3f} of {one:.3f} ms, "
        f"{shared / one:.2f}; at most {TARGET_RATIO:.2f} is wanted.\n"
    )


def names_given(
    parser: argparse.ArgumentParser, flag: str, text: str, known: Collection[str]
) -> list[str]:
    """The names with commas between them; the script ends at one that is not ``known``."""
    names = parse_names(text)
    try:
        check_known(flag, names, known)
    except BadInputError as error:
        parser.error(str(error))
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the run directories")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--device", choices=[*map(str, Device)], default="cuda")
    parser.add_argument("--parts", default="audit,table,cycles")
    parser.add_argument("--only", help="run directories")
    parser.add_argument("--batch-sizes", default=BATCH_SIZES)
    parser.add_argument("--context-len", type=int, default=1024)
    parser.add_argument("--cycles", type=int, default=20)
    parser.add_argument("--compile", choices=("off", "default"), default="off")
    parser.add_argument("--max-time", type=float, default=10.0, help="seconds a batch size")
    options = parser.parse_args()
    work = {
        "audit": lambda: audit(options),
        "table": lambda: measure_all(options),
        "cycles": lambda: cycle(options),
    }
    parts = names_given(parser, "--parts", options.parts, work)
    if options.only is not None:
        known = [run.name for run in runs(options.tp)]
        options.only = names_given(parser, "--only", options.only, known)
    options.output.mkdir(parents=True, exist_ok=True)
    failed = [part for part in parts if not work[part]()]
    text = f"`python {' '.join(sys.argv)}`\n\n{table(options)}{verdict(options)}"
    (options.output / "tp.md").write_text(text)
    print(text)
    raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
