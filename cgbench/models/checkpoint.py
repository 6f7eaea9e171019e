"""Reading a checkpoint's config and its head's tensors, from a folder or a model hub."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, Qwen2Config
from transformers.utils import cached_file

from cgbench.errors import ModelError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# Bytes of each of two tensors that are compared at once.
_COMPARED_BYTES = 1 << 26
# safetensors' names of types, in bits.
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4,
}  # fmt: skip
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# Layouts that transformers has no config class for, and the architecture that they really are.
KNOWN_AS = {"mimo": Qwen2Config}


def check_ref(flag: str, ref: str) -> None:
    """Tell a mistyped folder from a hub id.

    Raises ``ModelError`` naming the flag where ``ref`` is neither a folder, nor a GGUF file, nor
    like a hub id.
    """
    if Path(ref).suffix == ".gguf" and Path(ref).is_file():
        return
    # An empty path is the current folder.
    if not (ref and Path(ref).is_dir()) and not HUB_ID.fullmatch(ref):
        raise ModelError(f"{flag} {ref}: no such folder, and not like a hub id (owner/name)")


def read_config(ref: str, gguf_file: Path | None = None) -> PretrainedConfig:
    """The config of a folder, GGUF file or hub id; ``mimo`` becomes the Qwen2 config it really is.

    Raises ``ModelError`` where there is none, or where transformers does not know its type.
    """
    if gguf_file is not None:
        return _gguf_config(gguf_file)
    if Path(ref).exists() and not (Path(ref) / "config.json").is_file():
        raise ModelError(f"MODEL {ref}: the folder has no config.json")
    try:
        raw, _ = PretrainedConfig.get_config_dict(ref)
        if not raw:
            raise ModelError(f"MODEL {ref}: no config.json found")
        return config_from_dict(raw) if raw.get("model_type") in KNOWN_AS else _auto_config(ref)
    except (OSError, ValueError, KeyError) as error:
        where = "" if Path(ref).exists() else "no such folder here, and as a hub id: "
        raise ModelError(f"MODEL {ref}: {where}{first_line(error)}") from error


def _gguf_config(file: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"MODEL {file}: {first_line(error)}") from error


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


def all_tensor_files(ref: str) -> dict[str, Path]:
    """``tensor_files``, and what a folder's ``*mtp*.safetensors`` hold beside them: heads that were
    exported anew may lie beside the index and not in it."""
    files = tensor_files(ref)
    others = set(Path(ref).glob("*mtp*.safetensors")) if Path(ref).is_dir() else set()
    for path in sorted(others - set(files.values())):
        with _opened(path) as file:
            files |= {name: path for name in file.keys() if name not in files}
    return files


def raw_config(ref: str) -> dict[str, Any]:
    """``config.json`` as it is written; empty where there is none.

    Raises ``ModelError`` where it cannot be read as an object.
    """
    path = _find_file(ref, CONFIG_FILE)
    if path is None:
        return {}
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: must be a JSON object")
    return raw


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


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a safetensors file's header states it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * _BITS.get(self.dtype, 0) // 8


def stored_tensors(files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """The headers' word on each tensor of ``files``, in that order."""
    by_file: dict[Path, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    found: dict[str, StoredTensor] = {}
    for path, names in by_file.items():
        with _opened(path) as file:
            for name in names:
                entry = file.get_slice(name)
                shape = tuple(entry.get_shape())
                found[name] = StoredTensor(name, entry.get_dtype(), shape, path.name)
    return {name: found[name] for name in files}


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file. Raises ``ModelError`` where the file is damaged."""
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def equal_values(one: tuple[Path, str], other: tuple[Path, str], dtype: torch.dtype) -> bool:
    """Whether two stored tensors, each a file and a name, are the same in ``dtype``.

    They are read a few rows at a time, up to the first difference, so neither is ever in memory.
    """
    with _opened(one[0]) as first, _opened(other[0]) as second:
        mine, its = first.get_slice(one[1]), second.get_slice(other[1])
        shape = mine.get_shape()
        if shape != its.get_shape():
            return False
        step = max(1, _COMPARED_BYTES // (4 * max(1, prod(shape[1:]))))
        return all(
            torch.equal(mine[row : row + step].to(dtype), its[row : row + step].to(dtype))
            for row in range(0, shape[0], step)
        )


def first_line(error: Exception) -> str:
    """An exception's message on one line, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
