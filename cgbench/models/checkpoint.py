"""Reading a checkpoint's config and its head's tensors, from a folder or a model hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, Qwen2Config
from transformers.utils import cached_file

from cgbench.errors import MissingHeadError, ModelError
from cgbench.models.families import FAMILIES, HeadFamily
from cgbench.models.head import DraftHead

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
# Some checkpoints store these again in the head; they are the target's.
SHARED_COPIES = ("embed_tokens.weight", "lm_head.weight", "rotary_emb.inv_freq")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Layouts that transformers has no config class for, and the architecture that they really are.
KNOWN_AS = {"mimo": Qwen2Config}


def check_ref(flag: str, ref: str) -> None:
    """Tell a mistyped folder from a hub id.

    Raises ``ModelError`` naming the flag where ``ref`` is neither a folder nor like a hub id.
    """
    if not Path(ref).is_dir() and not HUB_ID.fullmatch(ref):
        raise ModelError(f"{flag} {ref}: no such folder, and not like a hub id (owner/name)")


def read_config(ref: str) -> PretrainedConfig:
    """The config of a folder or hub id; ``mimo`` becomes the Qwen2 config it really is.

    Raises ``ModelError`` where there is none, or where transformers does not know its type.
    """
    if Path(ref).exists() and not (Path(ref) / "config.json").is_file():
        raise ModelError(f"MODEL {ref}: the folder has no config.json")
    try:
        raw, _ = PretrainedConfig.get_config_dict(ref)
        if not raw:
            raise ModelError(f"MODEL {ref}: no config.json found")
        return config_from_dict(raw) if raw.get("model_type") in KNOWN_AS else _auto_config(ref)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"MODEL {ref}: {first_line(error)}") from error


def _auto_config(ref: str) -> PretrainedConfig:
    return AutoConfig.from_pretrained(ref)


def config_from_dict(raw: dict[str, Any]) -> PretrainedConfig:
    """A transformers config for ``config.json``'s content, ``mimo`` included."""
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map")}
    model_type = raw["model_type"]
    if model_type in KNOWN_AS:
        return KNOWN_AS[model_type](**fields)
    return AutoConfig.for_model(model_type, **fields)


def tensor_files(ref: str) -> dict[str, Path]:
    """Every tensor name of a checkpoint and the file that holds it, through its index file.

    Raises ``ModelError`` where the checkpoint has no safetensors files.
    """
    index = _find_file(ref, INDEX_FILE)
    if index is not None:
        names = _weight_map(index)
        files = {file: _find_file(ref, file) for file in set(names.values())}
        if missing := sorted(file for file, path in files.items() if path is None):
            raise ModelError(f"{ref}: {INDEX_FILE} names {missing[0]}, which is not there")
        return {name: path for name, file in names.items() if (path := files[file]) is not None}
    single = _find_file(ref, SINGLE_FILE)
    if single is None:
        raise ModelError(f"{ref}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def check_files(ref: str) -> None:
    """Open every file of a checkpoint. Raises ``ModelError`` naming the first damaged one."""
    for path in sorted(set(tensor_files(ref).values())):
        with _opened(path):
            pass


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path}: damaged: {first_line(error)}") from error


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: damaged: no weight_map can be read from it") from error


def _find_file(ref: str, name: str) -> Path | None:
    if Path(ref).is_dir():
        path = Path(ref) / name
        return path if path.is_file() else None
    try:
        found = cached_file(ref, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ModelError(f"{ref}: {first_line(error)}") from error
    return Path(found) if found else None


def detect_family(ref: str, files: dict[str, Path]) -> HeadFamily:
    """The family whose tensors the checkpoint holds.

    Raises ``MissingHeadError`` naming what was looked for.
    """
    for family in FAMILIES:
        if any(name.startswith(family.prefix) for name in files):
            return family
    looked_for = ", ".join(f"{family.prefix}*" for family in FAMILIES)
    raise MissingHeadError(
        f"{ref}: no MTP head tensors (looked for {looked_for}); "
        "give --head PATH, or --spec-tokens 0 to measure without speculation"
    )


def read_head_tensors(ref: str, head: DraftHead, files: dict[str, Path]) -> dict[str, Tensor]:
    """The head's tensors, checked one by one against what the head needs.

    Raises ``MissingHeadError`` naming every tensor that is missing or has another shape.
    """
    expected = head.expected_tensors()
    if missing := sorted(set(expected) - set(files)):
        raise MissingHeadError(f"{ref}: the MTP head lacks {', '.join(missing)}")
    if unused := sorted(_head_names(head, files) - set(expected)):
        raise MissingHeadError(
            f"{ref}: the MTP head has {', '.join(unused)}, which its target's layers do not have; "
            "it was made for another target"
        )
    tensors = {name: _read_tensor(files[name], name) for name in expected}
    wrong = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if tensors[name].shape != shape
    ]
    if wrong:
        raise MissingHeadError(f"{ref}: the MTP head does not fit its target: {'; '.join(wrong)}")
    return tensors


def _head_names(head: DraftHead, files: dict[str, Path]) -> set[str]:
    """The head's own tensors in the files, without the copies of what it shares."""
    names = {name for name in files if name.startswith(head.family.prefix)}
    return {name for name in names if not name.endswith(SHARED_COPIES)}


def _read_tensor(path: Path, name: str) -> Tensor:
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def first_line(error: Exception) -> str:
    """An exception's message on one line, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
