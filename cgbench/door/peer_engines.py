"""``cgbench.peer_engines`` times engines beside each other, each in a process of its own."""

import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from cgbench.door.prepare import use_passive_threads
from cgbench.errors import OutputError
from cgbench.progress import SILENT, Progress
from cgbench.request.engines_request import EnginesRequest
from cgbench.rundir.folders import check_new_folder

if TYPE_CHECKING:
    from cgbench.engines.engine_cells import EngineCell
    from cgbench.engines.engine_rows import EngineRow, EnginesTable
    from cgbench.engines.engine_runs import EngineRun, SharedModel

TABLE_FILE, TABLE_TEXT = "engines.json", "engines.md"


def peer_engines(
    request: EnginesRequest,
    output: "str | PathLike[str]",
    *,
    command: str = "cgbench.peer_engines(...)",
    progress: Progress = SILENT,
) -> "EnginesTable":
    """Let every engine decode the same prompts, and return what was measured of each.

    Each engine has a run directory of its name in the folder ``output``, and a log of each of its
    processes. An engine that fails is a line with its log, and the others go on. ``command`` is
    what the table names as its origin.

    Raise any of ``cgbench.errors``. An engine that is not installed is a ``BadInputError``.
    """
    from cgbench.engines.engine_launch import check_installed

    use_passive_threads()
    path = Path(output)
    check_new_folder("--output", path, "Choose another")
    settings = request.settings()
    for each in settings.values():
        check_installed(each)
    _make(path)
    from cgbench.engines.engine_runs import EngineRun
    from cgbench.engines.shared_model import shared_model

    with progress.working(f"read {request.model.ref}"):
        model = shared_model(request, path)
    runs = [EngineRun(each, request, model, path / name) for name, each in settings.items()]
    cells = _measure(runs, request, path, progress)
    table = _table(runs, cells, model, request, command)
    _write(path, table)
    return table


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output {path}: {error.strerror}") from error


def _measure(
    runs: "list[EngineRun]", request: EnginesRequest, path: Path, progress: Progress
) -> "list[EngineCell]":
    """Measure wave by wave. What is on disk stays there, however a later wave ends."""
    from cgbench.engines.engine_members import capacity_bytes, members, turns_of, waves
    from cgbench.engines.engine_waves import measure_wave
    from cgbench.tables.latency import latency_markdown

    every = [member for run in runs for member in members(run)]
    planned = waves(
        every, capacity_bytes(runs[0].model.device), one_at_a_time=request.one_at_a_time
    )
    turns = turns_of(planned)
    for run in runs:
        run.turns = turns
        for line in run.omissions:
            progress.say(line)
    cells: list[EngineCell] = []
    try:
        for wave in planned:
            cells += measure_wave(wave, request, path, progress)
    finally:
        for run in runs:
            run.finish(latency_markdown)
    return cells


def _table(
    runs: "list[EngineRun]",
    cells: "list[EngineCell]",
    model: "SharedModel",
    request: EnginesRequest,
    command: str,
) -> "EnginesTable":
    from cgbench.engines.engine_rows import EnginesTable

    order = {run.name: place for place, run in enumerate(runs)}
    ordered = sorted(cells, key=lambda c: (c.batch_size, c.spec_tokens, order[c.engine]))
    return EnginesTable(
        command=command,
        model=model.label,
        dtype=model.dtype,
        routing=model.routing.value,
        context_len=request.workload.context_len,
        environment=model.environment,
        rows=[_row(cell) for cell in ordered],
        engines=[run.facts() for run in runs if run.started],
        runs={run.name: run.path for run in runs if run.directory is not None},
        omissions=[line for run in runs for line in run.omissions],
        failures=[line for run in runs for line in run.failures],
    )


def _row(cell: "EngineCell") -> "EngineRow":
    from cgbench.engines.engine_rows import EngineRow
    from cgbench.measure.stop_rule import relative_half_width
    from cgbench.words import Status

    kept = cell.kept
    failed = cell.status.value if cell.status is Status.OOM else "failed"
    start = EngineRow(
        engine=cell.engine,
        spec_tokens=cell.spec_tokens,
        batch_size=cell.batch_size,
        mode=cell.mode.value,
        bucket=cell.bucket,
        status=cell.status.value if kept else failed,
        failure=cell.failure,
    )
    if not kept:
        return start
    wall_s = [seconds for block in kept for seconds in block.stepped.wall_s]
    device_s = [seconds for block in kept for seconds in block.stepped.device_s or ()]
    medians = [median(block.stepped.wall_s) for block in kept]
    wall_ms, width = median(wall_s) * 1e3, relative_half_width(medians)
    emissions = cell.emissions()
    emitted = sum(map(sum, emissions))
    profiled = cell.profiled
    return replace(
        start,
        blocks=len(kept),
        wall_ms=wall_ms,
        half_width_ms=None if width is None else width * wall_ms,
        device_ms=median(device_s) * 1e3 if device_s else None,
        gpu_busy_ms=profiled.busy_s * 1e3 if profiled and profiled.busy_s else None,
        kernels_per_step=profiled.kernels if profiled else None,
        graph_launches_per_step=profiled.graph_launches if profiled else None,
        tokens_per_step=emitted / len(emissions) / cell.batch_size,
        tokens_per_s=emitted / sum(wall_s),
    )


def _write(path: Path, table: "EnginesTable") -> None:
    from cgbench.tables.engines import engines_markdown

    try:
        text = json.dumps(table.to_json(), indent=2) + "\n"
        (path / TABLE_FILE).write_text(text, encoding="utf-8")
        (path / TABLE_TEXT).write_text(engines_markdown(table), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--output {path}: cannot be written: {error.strerror}") from error
