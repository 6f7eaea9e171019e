"""Write recorded arguments as the command line that gives them."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cgbench.request.keys import values_of
from cgbench.request.run_request import RunRequest

FLAGS = {value.key: value.flag for value in values_of(RunRequest)}


def flag_name(argument: str) -> str:
    """Return the flag of a recorded argument: ``spec_tokens`` is ``--spec-tokens``."""
    return FLAGS.get(argument) or "--" + argument.replace("_", "-")


def command_line(command: str, arguments: Mapping[str, Any]) -> str:
    """Return ``cgbench COMMAND`` with ``arguments``, which are named as in a record."""
    words = [_words(name, value) for name, value in arguments.items()]
    return " ".join([f"cgbench {command}", *filter(None, words)])


def resume_command(arguments: Mapping[str, Any], path: Path) -> str:
    """Return the command that goes on with the run in ``path``, which was begun with
    ``arguments``."""
    words = command_line("run", arguments)
    return f"{words} --output {shlex.quote(str(path))} --resume"


def _words(name: str, value: Any) -> str:
    """Return one argument as typed, or nothing if it was left out."""
    if value is None or value is False or value == []:
        return ""
    if value is True:
        return flag_name(name)
    text = shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if name == "model" else f"{flag_name(name)} {text}"
