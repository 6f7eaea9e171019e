"""Read a checkpoint's config and its tensors, from a folder or a model hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    GenerationConfig,
    PretrainedConfig,
    Qwen2Config,
)
from transformers.utils import cached_file

from cgbench.errors import ModelError, first_line
from cgbench.inputs import JsonObject, parse_json, read_text, shown, shown_whole
from cgbench.models.config_faults import fault_of
from cgbench.models.config_fields import (
    check_end_tokens,
    check_fields,
    check_relations,
    check_values,
    keep_tails,
)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MTP_FILE = "mtp.safetensors"
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt"})
"""Weights in files of these endings are pickled."""
# So many bytes of each of two tensors are compared at once.
_COMPARED_BYTES = 1 << 26
# The bits of a number, by safetensors' name of its type.
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4,
}  # fmt: skip
# The hub takes an owner and a name.
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

MAX_CONFIG_BYTES = 16 << 20
"""A config may have at most this many bytes, a hundred times the longest public ``config.json``."""

MAX_INDEX_BYTES = 256 << 20
"""An index may have at most this many bytes, which name two million tensors."""

# Layouts that transformers has no config class for, and the class that fits them.
KNOWN_AS = {"mimo": Qwen2Config}


def check_ref(flag: str, ref: str) -> None:
    """Check that ``ref`` is a folder or a GGUF file, or looks like a hub id.

    So a mistyped folder is not taken for a hub id. Raise ``ModelError`` with the flag if it is none
    of them.
    """
    if is_folder(ref) or HUB_ID.fullmatch(ref):
        return
    if not (ref.endswith(".gguf") and Path(ref).is_file()):
        raise ModelError(
            f"{flag} {shown_whole(ref)}: no such folder, and not like a hub id, which is owner/name"
        )


def is_folder(ref: str) -> bool:
    """Return whether ``ref`` is a folder.

    An empty path is none, although Python takes it for the current folder. A name that is too long
    is none either.
    """
    try:
        return bool(ref) and Path(ref).is_dir()
    except OSError:
        return False


def read_config(ref: str, gguf_file: Path | None = None) -> PretrainedConfig:
    """Return the config of a folder, a GGUF file or a hub id.

    ``mimo`` becomes the Qwen2 config that it really is. Raise ``ModelError`` with the file and the
    field if the config is bad, or if transformers does not know its type.
    """
    where = f"MODEL {gguf_file}" if gguf_file is not None else f"MODEL {Path(ref, CONFIG_FILE)}"
    raw = {} if gguf_file is not None else _read_fields(ref, where)
    try:
        if gguf_file is not None:
            config = AutoConfig.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
        else:
            config = _config_of(ref, raw)
    # The file is at fault, whatever transformers raises.
    except Exception as error:
        raise ModelError(f"{where}: {fault_of(error, raw)}") from error
    check_relations(where, config, raw)
    return config


def _read_fields(ref: str, where: str) -> JsonObject:
    file = _find_config(ref)
    text = read_text(where, file, MAX_CONFIG_BYTES, ModelError)
    raw = check_fields(where, parse_json(where, text, ModelError))
    model_type = raw["model_type"]
    if model_type not in KNOWN_AS and model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"{where}: model_type {shown(model_type)}: transformers {transformers.__version__} "
            "does not know it. Code in a checkpoint is never run"
        )
    return raw


def _find_config(ref: str) -> Path:
    if is_folder(ref):
        if (file := _find_file(ref, CONFIG_FILE)) is None:
            raise ModelError(f"MODEL {ref}: the folder has no {CONFIG_FILE}")
        return file
    try:
        return Path(str(cached_file(ref, CONFIG_FILE)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"MODEL {ref}: no such folder here, and as a hub id: {first_line(error)}"
        ) from error


def _config_of(ref: str, raw: JsonObject) -> PretrainedConfig:
    if raw["model_type"] in KNOWN_AS:
        return config_from_dict(raw)
    return keep_tails(AutoConfig.from_pretrained(ref, trust_remote_code=False), raw)


def config_from_dict(raw: JsonObject) -> PretrainedConfig:
    """Return a transformers config for the content of a ``config.json``, ``mimo`` included."""
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "auto_map")}
    model_type = raw["model_type"]
    if model_type == "mimo_v2_flash" and type(raw.get("sliding_window_size")) is int:
        # The tokens before a query's own. transformers 5.17 to 5.19 does not read this name.
        fields["sliding_window"] = raw["sliding_window_size"] + 1
    if model_type in KNOWN_AS:
        return KNOWN_AS[model_type](**fields)
    return keep_tails(AutoConfig.for_model(model_type, **fields), raw)


def check_generation_config(ref: str, config: PretrainedConfig) -> None:
    """Check the ``generation_config.json`` of a checkpoint, if it has one.

    transformers must be able to read it, and the model must have its end tokens. Nothing else of it
    is used. Raise ``ModelError`` if the check fails.
    """
    file = _find_file(ref, GENERATION_FILE)
    if file is None:
        return
    where = f"MODEL {Path(ref, GENERATION_FILE)}"
    raw = parse_json(where, read_text(where, file, MAX_CONFIG_BYTES, ModelError), ModelError)
    if not isinstance(raw, dict):
        raise ModelError(f"{where}: must be an object, not {shown(raw)}")
    check_values(where, raw)
    check_end_tokens(where, raw.get("eos_token_id"), config.get_text_config())
    try:
        GenerationConfig.from_dict(dict(raw))
    # The file is at fault here too, as for config.json.
    except Exception as error:
        raise ModelError(f"{where}: {fault_of(error, raw)}") from error


def tensor_files(ref: str) -> dict[str, Path]:
    """Return the file that holds each tensor of a checkpoint, by the tensor's name.

    The names are those of the index file, or of the one safetensors file. Raise ``ModelError`` if
    neither file is there, or if the index names a file that is missing.
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
        raise ModelError(f"{ref}: {_why_no_tensors(ref)}")
    with _opened(single) as file:
        return dict.fromkeys(file.keys(), single)


def _why_no_tensors(ref: str) -> str:
    """Return in words what is there in place of safetensors files.

    Many EAGLE heads are published as ``pytorch_model.bin`` alone. A hub id is not asked for it,
    because it would be downloaded.
    """
    folder = Path(ref)
    pickled = (
        sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED) if is_folder(ref) else []
    )
    if pickled:
        return (
            f"its weights are pickled ({pickled[0]}), and cgbench unpickles nothing, because that "
            f"can run code. Convert them to {SINGLE_FILE}"
        )
    return (
        f"neither {SINGLE_FILE} nor {INDEX_FILE} is there. Pickled weights such as "
        "pytorch_model.bin are not read"
    )


def all_tensor_files(ref: str) -> dict[str, Path]:
    """Return ``tensor_files`` and the tensors of ``mtp.safetensors`` beside them.

    Other files of a folder named ``*mtp*.safetensors`` are read too. A head that was exported anew
    may lie beside the index and not be named in it, or alone. Raise ``ModelError`` if there are
    neither.
    """
    others = set(Path(ref).glob("*mtp*.safetensors")) if is_folder(ref) else _hub_mtp_file(ref)
    files: dict[str, Path] = {}
    if not others or _has_tensors(ref):
        files = tensor_files(ref)
    for path in sorted(others - set(files.values())):
        with _opened(path) as file:
            files |= {name: path for name in file.keys() if name not in files}
    return files


def _hub_mtp_file(ref: str) -> set[Path]:
    path = _find_file(ref, MTP_FILE)
    return set() if path is None else {path}


def _has_tensors(ref: str) -> bool:
    return any(_find_file(ref, name) is not None for name in (INDEX_FILE, SINGLE_FILE))


def raw_config(ref: str) -> JsonObject:
    """Return the content of ``config.json`` as it is written, or an empty dict without one.

    A GGUF file has none. Raise ``ModelError`` if it cannot be read as an object.
    """
    path = None if _is_gguf(Path(ref)) else _find_file(ref, CONFIG_FILE)
    if path is None:
        return {}
    where = str(path)
    raw = parse_json(where, read_text(where, path, MAX_CONFIG_BYTES, ModelError), ModelError)
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: must be a JSON object")
    return raw


def check_files(ref: str) -> None:
    """Open every file of a checkpoint. Raise ``ModelError`` with the name of the first damaged
    one."""
    for path in sorted(set(tensor_files(ref).values())):
        with _opened(path):
            pass


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged: {first_line(error)}") from error


def _weight_map(index: Path) -> dict[str, str]:
    where = f"MODEL {index}"
    raw = parse_json(where, read_text(where, index, MAX_INDEX_BYTES, ModelError), ModelError)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{where}: weight_map: must be an object of tensor names and their files")
    for name, file in weight_map.items():
        if not _is_shard(file):
            raise ModelError(
                f"{where}: weight_map: {shown(name)} is in {shown(file)}: must be a .safetensors "
                "file beside the index"
            )
    return weight_map


def _is_shard(file: object) -> bool:
    """Return whether ``file`` names a file below the index's folder.

    So no checkpoint can name files elsewhere.
    """
    if not isinstance(file, str) or not file.endswith(".safetensors") or not file.isprintable():
        return False
    return not Path(file).is_absolute() and ".." not in Path(file).parts


def _find_file(ref: str, name: str) -> Path | None:
    if is_folder(ref):
        path = Path(ref, name)
        if path.exists() and not path.is_file():
            raise ModelError(f"MODEL {path}: must be a file")
        return path if path.is_file() else None
    try:
        found = cached_file(ref, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{ref}: {first_line(error)}") from error
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A ``StoredTensor`` describes a tensor as the header of a safetensors file states it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the tensor in the file, or 0 for an unknown type."""
        return prod(self.shape) * _BITS.get(self.dtype, 0) // 8


def stored_tensors(files: Mapping[str, Path]) -> dict[str, StoredTensor]:
    """Return the headers of the tensors in ``files``, in that order.

    ``files`` maps each tensor's name to its file.
    """
    by_file: dict[Path, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    found: dict[str, StoredTensor] = {}
    for path, names in by_file.items():
        if _is_gguf(path):
            from cgbench.models.heads.gguf_head import gguf_header

            found |= {name: gguf_header(path, name) for name in names}
            continue
        with _opened(path) as file:
            for name in names:
                entry = file.get_slice(name)
                shape = tuple(entry.get_shape())
                found[name] = StoredTensor(name, entry.get_dtype(), shape, path.name)
    return {name: found[name] for name in files}


def read_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file, or of the head in a GGUF file.

    Raise ``ModelError`` if the file is damaged.
    """
    if _is_gguf(path):
        # Imported here, because it describes its tensors as this module does.
        from cgbench.models.heads.gguf_head import read_gguf_tensor

        return read_gguf_tensor(path, name)
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and path.is_file()


def equal_values(one: tuple[Path, str], other: tuple[Path, str], dtype: torch.dtype) -> bool:
    """Return whether two stored tensors have the same values in ``dtype``.

    Each is a file and a name. They are read a few rows at a time, up to the first difference, so
    neither is ever whole in memory.
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
