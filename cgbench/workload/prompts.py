"""Read the texts that ``--prompts`` names: a public set, a file, or the prompts that ship."""

from dataclasses import replace
from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.request.model_ref import DEFAULT_MODEL_DIR
from cgbench.workload.prompt_files import FILE_SUFFIXES, PromptTexts, read_prompts
from cgbench.workload.prompt_sets import PROMPT_SETS, read_set

DEFAULT_PROMPTS = DEFAULT_MODEL_DIR / "prompts.jsonl"
RANDOM = "random"


def read_named(value: str | None, num_prompts: int | None) -> PromptTexts:
    """Return the first ``num_prompts`` of the prompts that ``value`` names, or all for None.

    ``value`` is the name of a set or a file. None means the prompts that ship. Raise
    ``BadInputError`` if it names nothing, or if the prompts cannot be read.
    """
    texts = _read(value)
    return replace(texts, prompts=texts.prompts[:num_prompts])


def _read(value: str | None) -> PromptTexts:
    if value is None:
        shipped = tuple(read_prompts(DEFAULT_PROMPTS))
        return PromptTexts("default prompts", shipped, licence="PSF-2.0")
    if value in PROMPT_SETS:
        known = PROMPT_SETS[value]
        return PromptTexts(
            value, tuple(read_set(known)), known.licence, known.requirement, known.instruction
        )
    if Path(value).suffix not in FILE_SUFFIXES:
        names = ", ".join([*PROMPT_SETS, RANDOM])
        raise BadInputError(f"--prompts {value}: must be {names}, FILE.jsonl or FILE.txt")
    return PromptTexts(value, tuple(read_prompts(Path(value))))
