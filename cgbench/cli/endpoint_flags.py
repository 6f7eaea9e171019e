"""The flags of ``cgbench audit --endpoint``, and what may not stand beside it."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgbench.cli.panels import ENDPOINT
from cgbench.errors import BadInputError
from cgbench.request.command_line import flag_name

if TYPE_CHECKING:
    from cgbench.endpoint.endpoint_request import EndpointRequest

Endpoint = Annotated[
    str | None,
    typer.Option(
        help="Audit the server at this URL instead, over the OpenAI completions protocol. MODEL is "
        "the name that it serves.",
        rich_help_panel=ENDPOINT,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="Hold the server's answers to those of this URL, such as the same engine without "
        "graphs. Default: to its own, one request at a time.",
        rich_help_panel=ENDPOINT,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="The policy that plans as the engine does, such as vllm-0.33. Give --max-num-seqs and "
        "--spec-tokens too.",
        rich_help_panel=ENDPOINT,
    ),
]
LaunchLine = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="LINE",
        help="The line that started the engine, in quotes, in place of --engine.",
        rich_help_panel=ENDPOINT,
    ),
]
Edges = Annotated[
    str | None,
    typer.Option(
        help="Only the edges after these batch sizes, such as 4,8. Default: all.",
        rich_help_panel=ENDPOINT,
    ),
]
Repeats = Annotated[
    int,
    typer.Option(
        help="How often an edge is tried again, to tell a flake or to see more drafts.",
        rich_help_panel=ENDPOINT,
    ),
]
MaxRequests = Annotated[
    int, typer.Option(help="Most requests to send in all.", rich_help_panel=ENDPOINT)
]
MaxSeconds = Annotated[
    int, typer.Option(help="No edge begins after so many seconds.", rich_help_panel=ENDPOINT)
]
Timeout = Annotated[
    int,
    typer.Option(help="Seconds for which the server may be silent.", rich_help_panel=ENDPOINT),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="The server computes in float32: every difference is wrong, without logprobs too.",
        rich_help_panel=ENDPOINT,
    ),
]
ApiKeyEnv = Annotated[
    str,
    typer.Option(
        help="The environment variable that holds the server's key.", rich_help_panel=ENDPOINT
    ),
]

OWN = frozenset(
    {
        *("endpoint", "against", "engine", "launch_line", "edges", "repeats", "max_requests"),
        *("max_seconds", "timeout", "exact", "api_key_env"),
    }
)
"""Parameters that go with ``--endpoint`` alone."""

SHARED = frozenset(
    {
        *("model", "spec_tokens", "max_num_seqs", "capture_sizes", "capture_unit", "checks"),
        *("max_num_batched_tokens", "prompts", "num_prompts", "max_new_tokens"),
        *("repro", "as_json", "debug"),
    }
)
"""Parameters that mean something both with ``--endpoint`` and without."""


def check_beside(command: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ``BadInputError`` for a flag that goes with ``--endpoint`` alone, or not with it."""
    stated = inspect.signature(command).parameters
    changed = [name for name in given if given[name] != stated[name].default]
    is_served = given["endpoint"] is not None
    if is_served:
        unread = [name for name in changed if name not in OWN | SHARED]
        words = "not with --endpoint, whose server has loaded its model. Drop one"
    else:
        unread = [name for name in changed if name in OWN]
        words = "goes with --endpoint. Give it too"
    if unread:
        raise BadInputError(f"{_flag(unread[0])}: {words}")


def endpoint_request(given: Mapping[str, Any]) -> "EndpointRequest":
    """Return what the command's parameters ask of a server.

    Raise ``BadInputError``, naming the flag.
    """
    from cgbench.cli.values import asked
    from cgbench.endpoint.endpoint_request import EndpointRequest

    values = dict(given)
    values["from"] = values.pop("launch_line")
    values["model"] = None if values["model"] == "default" else values["model"]
    values["spec_tokens"] = _one_length(values["spec_tokens"])
    # What is left out has the request's own default.
    return asked(EndpointRequest, {n: v for n, v in values.items() if v is not None})


def _one_length(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 3:
        raise BadInputError(f"--spec-tokens {text[:40]}: must be one number with --endpoint")
    return int(text)


def _flag(name: str) -> str:
    return "--from" if name == "launch_line" else flag_name(name)
