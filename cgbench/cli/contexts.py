"""Measure ``--context-len 1024,8192`` as a run for each context, each in a fresh process.

A run directory holds one context, so each is an ordinary run below ``--output``. ``cgbench tune``
and ``report`` take them together. This process loads no model.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.cli.console import TerminalProgress, say
from cgbench.door.processes import is_finished, measure_in_processes, run_apart
from cgbench.errors import BadInputError, RunDirectoryError
from cgbench.request.run_request import RunRequest

if TYPE_CHECKING:
    from cgbench.rundir.store import RunDirectory


def measure_contexts(
    request: RunRequest, contexts: Sequence[int], path: Path, *, resume: bool
) -> "list[RunDirectory]":
    """Measure each of ``contexts``, and return the finished runs in their order.

    Raise ``BadInputError`` for several GPUs, and ``ProcessError`` if a process ends badly. Raise
    ``RunDirectoryError`` if ``path`` holds anything without ``resume``.
    """
    if request.sharing.num_ranks > 1:
        listed = ",".join(map(str, contexts))
        raise BadInputError(f"--context-len {listed}: several contexts do not go with --tp")
    if not resume:
        _check_new(path)
    parts = [path / f"context-{context}" for context in contexts]
    for context, part in zip(contexts, parts, strict=True):
        say(f"context {context}")
        _measure(_at(request, context), part, f"--context-len {context}")
    from cgbench.rundir.store import RunDirectory

    return [RunDirectory.open(part) for part in parts]


def _at(request: RunRequest, context: int) -> RunRequest:
    return replace(request, workload=replace(request.workload, context_len=context))


def _measure(request: RunRequest, part: Path, name: str) -> None:
    if is_finished(part, request):
        return
    if request.timing.processes > 1:
        measure_in_processes(request, part, TerminalProgress(), resume=part.exists())
    else:
        run_apart(request, part, name, TerminalProgress())


def _check_new(path: Path) -> None:
    if path.exists() and any(path.iterdir()):
        raise RunDirectoryError(
            f"--output {path}: is not empty. Choose another, or go on with --resume"
        )
