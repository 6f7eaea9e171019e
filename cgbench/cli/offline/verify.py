"""``cgbench tune --verify`` measures again on this machine what is advised."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cgbench.cli.console import TerminalProgress, console, print_uncut, say
from cgbench.door.processes import run_apart
from cgbench.errors import CannotError, ExitCode, RunDirectoryError
from cgbench.request.run_request import RunRequest

if TYPE_CHECKING:
    from cgbench.advice.advise import Advice, ContextAdvice
    from cgbench.rundir.store import RunDirectory


def verify(found: "Advice", runs: "list[RunDirectory]", output: Path) -> ExitCode:
    """Measure the advised k at the ends of their tiers, with the flags of the run behind the
    advice.

    Return exit code 1 if a time or a gain differs from what was predicted, else 0. Raise
    ``CannotError`` if nothing is advised, ``RunDirectoryError`` if ``output`` holds anything, and
    ``ProcessError`` if the measurement ends badly.
    """
    from cgbench.advice.cell_times import measured_times
    from cgbench.advice.verification import all_agree, cells_again, gains_again
    from cgbench.rundir.store import RunDirectory
    from cgbench.tables.verification import cells_part, gains_part

    advised = [each for each in found.contexts if each.chosen]
    if not advised:
        raise CannotError("--verify: nothing is advised, so there is nothing to measure")
    if output.exists() and any(output.iterdir()):
        raise RunDirectoryError(f"--verify {output}: is not empty. Choose another folder")
    opened = []
    for each in advised:
        part = output / f"context-{each.context_len}"
        say(f"measuring context {each.context_len} again")
        run_apart(_request(each, runs, found), part, "--verify", TerminalProgress())
        opened.append(RunDirectory.open(part))
    again = measured_times(opened)
    cells, gains = cells_again(found, again), gains_again(found, again)
    for table in (cells_part(cells), gains_part(gains)):
        print_uncut(table.terminal(console().width))
    typer.echo(f"written to {output}")
    return ExitCode.OK if all_agree([*cells, *gains]) else ExitCode.ANSWER_IS_NO


def _request(each: "ContextAdvice", runs: "list[RunDirectory]", found: "Advice") -> RunRequest:
    """Return the run's own request, for fewer cells."""
    from cgbench.advice.verification import to_verify

    at = next(at for at in found.times.cells if at.context_len == each.context_len)
    run = runs[found.times.cells[at].run]
    record = run.record.arguments
    request = RunRequest.from_record(record, f"{run.path / 'run.json'}: arguments")
    lengths, sizes = to_verify(each)
    largest = max(found.times.batch_sizes(each.context_len))
    changed = {
        "spec_tokens": lengths,
        "batch_sizes": sizes,
        "scopes": [found.times.scope.value],
        "max_num_seqs": record.get("max_num_seqs") or largest,
        "context_len": each.context_len,
        "processes": 1,
    }
    return RunRequest.from_record({**request.to_record(), **changed})
