"""Packages of prompt sets, as pip leaves them, with two texts each."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cgbench.workload.prompt_sets import PROMPT_SETS, PromptSet, sha256_of_texts

TEXTS = ["def f():\n", "Why é?"]

# Rows as the packages have them, the prompt among other fields.
ROWS: dict[str, list[dict[str, Any]]] = {
    "humaneval": [{"task_id": f"HumanEval/{i}", "prompt": t} for i, t in enumerate(TEXTS)],
    "mt-bench": [{"question_id": 81, "turns": [text, "And then?"]} for text in TEXTS],
    "gsm8k": [{"id": "1", "prompt": text, "expected": "18"} for text in TEXTS],
}


def install(folder: Path, prompt_set: PromptSet, rows: Sequence[object]) -> Path:
    """A distribution in ``folder`` as pip leaves one; importing it would fail. Returns the data."""
    name = prompt_set.package.replace("-", "_")
    info = folder / f"{name}-{prompt_set.version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {prompt_set.package}\nVersion: {prompt_set.version}\n"
    (info / "METADATA").write_text(metadata + "Requires-Dist: nothing-there\n")
    file = folder / prompt_set.file
    file.parent.mkdir(parents=True)
    (folder / Path(prompt_set.file).parts[0] / "__init__.py").write_text("raise ImportError")
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def known(name: str) -> PromptSet:
    """The set as it is, but for its texts."""
    return replace(PROMPT_SETS[name], sha256=sha256_of_texts(TEXTS))
