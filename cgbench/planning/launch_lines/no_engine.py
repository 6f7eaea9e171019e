"""Say how to give a line that starts no known engine as it stands."""

import os
import re
import shlex

from cgbench.errors import BadInputError
from cgbench.inputs import shown
from cgbench.planning.launch_lines.lost_quotes import lost_quotes

_SCRIPT = re.compile(r"\S+\.(sh|bash|zsh|cmd|txt|service)")
_CONFIG = re.compile(r"\S+\.(ya?ml|json)")


def no_engine(label: str, line: str) -> BadInputError:
    """Return the error for ``line``, which names the cure if it holds a file's name."""
    clause = _of_a_file(line) or lost_quotes(line)
    known = (
        "It must hold vllm serve, python -m sglang.launch_server, trtllm-serve or "
        "python -m fastdeploy.entrypoints.openai.api_server"
    )
    return BadInputError(f"{label} {shown(line)}: starts no known engine{clause or '. ' + known}")


def _of_a_file(line: str) -> str:
    words = [line.strip(), *line.split()]
    if _CONFIG.fullmatch(words[0]):
        return f". An engine's own configuration goes to cgbench plan --config {words[0]}"
    scripts = (word for word in words if _SCRIPT.fullmatch(word) or _is_text(word))
    script = next(scripts, None)
    return f'. For the line in a file, give --from "$(cat {shlex.quote(script)})"' if script else ""


def _is_text(word: str) -> bool:
    """Check that a word names a file that holds a line. A program's own file holds none."""
    if not os.path.isfile(word):
        return False
    try:
        with open(word, "rb") as file:
            return b"\0" not in file.read(1_000)
    except OSError:
        return True
