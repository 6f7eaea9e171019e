"""Declare the flags of ``cgbench peers`` that start other engines, and call them."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgbench.cli.panels import ENGINES
from cgbench.cli.values import asked
from cgbench.errors import BadInputError, ExitCode, foremost
from cgbench.request.engines_request import EnginesRequest

if TYPE_CHECKING:
    from cgbench.engines.engine_rows import EnginesTable

DEFAULT_OUTPUT = Path("results/runs")

EngineNames = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        help="cgbench, vllm, sglang or transformers, each in a process of its own. Give it once "
        "for each engine. Without it, this tool and transformers decode in one process.",
        rich_help_panel=ENGINES,
    ),
]
EngineArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        help="ENGINE:NAME=VALUE, an argument of the engine's own constructor, as in "
        "vllm:enforce_eager=true. VALUE is JSON or text.",
        rich_help_panel=ENGINES,
    ),
]
EngineEnv = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-env",
        help="ENGINE:NAME=VALUE, a variable of the engine's environment.",
        rich_help_panel=ENGINES,
    ),
]
EnginePython = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-python",
        help="ENGINE=PATH, the Python of the environment that the engine lives in.",
        rich_help_panel=ENGINES,
    ),
]
EngineSite = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-site",
        help="ENGINE=PATH, a folder of packages that comes first on the engine's path.",
        rich_help_panel=ENGINES,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Timed steps of a block. Default: 16.", rich_help_panel=ENGINES),
]
OneAtATime = Annotated[
    bool,
    typer.Option(
        "--one-at-a-time",
        help="Keep one process in memory. Otherwise engines take blocks in turn, as far as memory "
        "allows.",
        rich_help_panel=ENGINES,
    ),
]
StartTimeout = Annotated[
    float,
    typer.Option(help="Most seconds that an engine takes to start.", rich_help_panel=ENGINES),
]
StepTimeout = Annotated[
    float,
    typer.Option(help="Most seconds of one prefill or block.", rich_help_panel=ENGINES),
]
FailOnGraphs = Annotated[
    bool,
    typer.Option(
        "--fail-on-graphs",
        help="End with exit code 1 if an engine captured other graphs than its policy plans.",
        rich_help_panel=ENGINES,
    ),
]


def engines_request(parameters: Mapping[str, Any], given: Mapping[str, object]) -> EnginesRequest:
    """Return the request of the flags. Raise ``BadInputError`` for a flag of the other form."""
    if parameters["peers"] is not None:
        raise BadInputError("--peers: names rows without --engine. Leave out one of the two")
    values = {
        **parameters,
        **given,
        "iterations": parameters["steps"],
        "max_time": parameters["seconds"],
        **{name: tuple(parameters[name] or ()) for name in _LISTS},
    }
    return asked(EnginesRequest, values)


_LISTS = ("engine", "engine_arg", "engine_env", "engine_python", "engine_site")


def default_folder(model: str) -> Path:
    """Return the folder of a comparison that names none."""
    slug = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(model).name)
    return DEFAULT_OUTPUT / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-peers-{slug}"


def engines_code(table: "EnginesTable", *, fail_on_graphs: bool) -> ExitCode:
    """Return the exit code: 1 for other graphs if asked, 3 if something is missing, 4 if a cell was
    disturbed.
    """
    codes = {ExitCode.OK}
    if fail_on_graphs and table.findings:
        codes.add(ExitCode.ANSWER_IS_NO)
    if table.failures or not table.rows:
        codes.add(ExitCode.CANNOT)
    if any(row.status == "disturbed" for row in table.rows):
        codes.add(ExitCode.INCONCLUSIVE)
    return foremost(codes)
