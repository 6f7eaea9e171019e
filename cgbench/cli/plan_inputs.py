"""Read the flags of ``cgbench plan`` together, and check them before anything is planned."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from cgbench.cli.choices import Format
from cgbench.cli.values import parse_bytes
from cgbench.errors import BadInputError
from cgbench.planning import Costs
from cgbench.planning.costs import EAGER_PENALTY
from cgbench.planning.graph_memory import STATED, GraphMemory
from cgbench.planning.plan_questions import Budget


def budget(
    max_graphs: int | None, max_memory: str | None, max_capture_seconds: float | None
) -> Budget:
    """Return the budget that the three flags state. Raise ``BadInputError`` for a ``--max-memory``
    that is no size.
    """
    num_bytes = None if max_memory is None else parse_bytes("--max-memory", max_memory)
    return Budget(max_graphs, num_bytes, max_capture_seconds)


def check_line(beside: dict[str, str | int | None]) -> None:
    """Raise ``BadInputError`` for a flag that the launch line itself states. ``beside`` holds the
    flags' values, None for those not given.
    """
    for flag, value in beside.items():
        if value is not None:
            raise BadInputError(f"{flag}: not beside --from or --config, which say it. Drop one")


def given(
    max_num_seqs: int | None, max_num_batched_tokens: int | None, *, no_padding: bool
) -> frozenset[str]:
    """Return the fields that the user gave, which no engine's default replaces."""
    given = {
        "max_batch_size": max_num_seqs is not None,
        "max_num_batched_tokens": max_num_batched_tokens is not None,
        "pad": no_padding,
    }
    return frozenset(name for name, is_given in given.items() if is_given)


def check_together(
    flags: str | None, output_format: Format, costs: Path | None, eager_penalty: float
) -> None:
    """Raise ``BadInputError`` for flags that do not go together."""
    if flags and output_format not in (Format.TABLE, Format.JSON):
        raise BadInputError(
            f"--format {output_format}: holds no --flags. Use json, or leave it out"
        )
    if costs and eager_penalty != EAGER_PENALTY:
        raise BadInputError("--eager-penalty: not with --costs, where eager is measured. Drop one")


def costs_at(spec_tokens: int, run: Path | None, eager_penalty: float) -> Costs:
    """Return the costs at one k, measured in ``run``. Without a run they are counted in tokens."""
    if run is None:
        return Costs.in_tokens(spec_tokens + 1, eager_penalty)
    # pandas is worth its half second only here.
    from cgbench.rundir.run_costs import read_costs

    return read_costs(run, spec_tokens)


def graph_memory(run: Path | None) -> GraphMemory:
    """Return the memory of graphs, measured in ``run``. Without a run it is the stated model."""
    if run is None:
        return STATED
    from cgbench.rundir.run_costs import read_graph_memory

    return read_graph_memory(run)


def quotes_hint(words: Sequence[str], message: str) -> str:
    """Return a clause for a usage error of a command whose ``--from`` may lack its quotes.

    The shell then makes words of its own of the launch line. It is empty for any other error.
    """
    values = [value for word, value in pairwise([*words, ""]) if word == "--from"]
    values += [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
    is_cut = any(len(value.split()) == 1 for value in values)
    if not values or not (is_cut or "extra argument" in message):
        return ""
    return '. --from takes the whole line, in quotes or as "$(cat FILE)"'
