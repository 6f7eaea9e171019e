"""``--repro DIR`` keeps the tensors of a wrong finding, so that it can be looked at again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgbench.checks.finding_facts import FindingFacts
from cgbench.checks.findings import Difference
from cgbench.errors import OutputError

README = """\
What `cgbench audit` found wrong, with what it was found on.

    {command}

makes the same checks again: same model, flags and seed.

CHECK.json         the finding, where it is, the arguments, the model's fingerprint, the versions
CHECK.safetensors  the device tensors of the failing step, by the names that CHECK.json lists
                   under difference.inputs: safetensors.torch.load_file(...) reads them
"""


def write_repro(
    path: Path,
    differences: Sequence[tuple[FindingFacts, Difference]],
    record: Mapping[str, object],
    command: str,
) -> None:
    """Write the tensors and the facts of every wrong finding to ``path``. ``differences`` holds
    each wrong finding's facts, and its difference.

    Raise ``OutputError`` if ``path`` cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for facts, difference in differences:
            name = facts["check"]
            save_file(_on_host(difference.inputs), path / f"{name}.safetensors")
            text = json.dumps({"finding": facts, **record}, indent=2)
            (path / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (path / "README.txt").write_text(README.format(command=command), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise OutputError(f"--repro {path}: cannot be written: {error}") from error


def read_inputs(path: Path, check: str) -> dict[str, Tensor]:
    """Return the tensors of a failing step, on the CPU."""
    tensors: dict[str, Tensor] = load_file(path / f"{check}.safetensors")
    return tensors


def _on_host(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU. Views of one buffer would share memory, which the format does not
    allow.
    """
    return {name: t.detach().cpu().clone().contiguous() for name, t in inputs.items()}
