"""What a checkpoint holds and what would be loaded from where, without loading a weight."""

from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from cgbench.errors import MissingHeadError, UnsupportedModelError
from cgbench.models.checkpoint import tensor_files
from cgbench.models.head import DraftHead
from cgbench.models.head_files import HeadFiles, head_tensors
from cgbench.models.request import LoadingPlan, ModelRequest, plan_loading
from cgbench.models.support import check_capturable, class_name

# safetensors' names of types, in bits.
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4,
}  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class Inspection:
    """``facts`` is what a script reads; ``head_tensors`` what would be loaded into the head."""

    facts: dict[str, Any]
    head_tensors: tuple[StoredTensor, ...]

    @property
    def is_usable(self) -> bool:
        """Whether there is a head and its graphs can be captured."""
        return self.facts["head_problem"] is None and self.facts["capture_problem"] is None


def inspect_model(request: ModelRequest) -> Inspection:
    """Everything that ``cgbench run`` would find out before it spends memory.

    A head that is not there, or a forward that cannot be captured, is a finding and not an error.
    Raises ``ModelError`` where there is no model to speak of, ``UnsupportedModelError`` for one
    that cannot be run.
    """
    head_problem = None
    try:
        plan = plan_loading(request)
    except MissingHeadError as error:
        head_problem = str(error)
        plan = plan_loading(_without_head(request))
    tensors = _head_tensors(plan)
    facts = {
        "model": plan.label,
        **_target_facts(plan),
        "checkpoint": _checkpoint_facts(plan),
        "head": _head_facts(plan, tensors),
        "kv_bytes_per_token": plan.skeleton.kv_bytes_per_token(request.dtype),
        "head_problem": head_problem,
        "capture_problem": _capture_problem(plan),
    }
    return Inspection(facts, tensors)


def _capture_problem(plan: LoadingPlan) -> str | None:
    try:
        check_capturable(plan.config)
    except UnsupportedModelError as error:
        return str(error)
    return None


def _without_head(request: ModelRequest) -> ModelRequest:
    return ModelRequest(request.ref, None, False, request.device, request.dtype)


def _target_facts(plan: LoadingPlan) -> dict[str, Any]:
    target, dtype = plan.skeleton.target, plan.request.dtype
    return {
        "class": class_name(plan.config),
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "max_positions": target.max_positions,
        "experts": plan.skeleton.has_experts,
        "tied_embeddings": bool(plan.config.get_text_config().tie_word_embeddings),
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": plan.skeleton.weight_bytes(dtype),
    }


def _checkpoint_facts(plan: LoadingPlan) -> dict[str, Any] | None:
    """The target's files; None for a preset, which has none."""
    if plan.request.preset is not None:
        return None
    if plan.gguf_file is not None:
        file = plan.gguf_file
        return {"files": {file.name: file.stat().st_size}, "dtypes": {"gguf, dequantised": None}}
    stored = stored_tensors(tensor_files(plan.request.path))
    files: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for tensor in stored.values():
        files[tensor.file] += tensor.num_bytes
        dtypes[tensor.dtype] += 1
    return {"files": dict(files), "dtypes": dict(dtypes)}


def _head_facts(plan: LoadingPlan, tensors: tuple[StoredTensor, ...]) -> dict[str, Any] | None:
    family, found = plan.family, plan.head_files
    if family is None:
        return None
    return {
        "family": family.name,
        "label": plan.head_label,
        "source": family.source,
        "modules": 1 if found is None else found.num_modules,
        "concat": family.concat,
        "hidden_in": family.hidden_in,
        "chain": family.chain,
        "out_norm": family.out_norm,
        "norm_form": family.norm_form,
        "first_embed": family.first_embed,
        "num_tensors": len(tensors),
        "weight_bytes": plan.skeleton.head_bytes(plan.request.dtype),
        "from": None if found is None else plan.request.head_ref or plan.request.ref,
    }


def _head_tensors(plan: LoadingPlan) -> tuple[StoredTensor, ...]:
    """What would be loaded into the head, in the head's own order."""
    head, found = plan.skeleton.head, plan.head_files
    if head is None or found is None:
        return ()
    names = _loaded_names(head, found)
    stored = stored_tensors({found.stored_as[name]: found.files[name] for name in names})
    return tuple(stored[found.stored_as[name]] for name in names)


def _loaded_names(head: DraftHead, found: HeadFiles) -> list[str]:
    """The checkpoint's names that the head needs. Raises nothing: missing ones are left out."""
    needed = [name for parts in head_tensors(head, found).values() for name in parts]
    return [name for name in needed if name in found.files]


def stored_tensors(files: dict[str, Path]) -> dict[str, StoredTensor]:
    """The headers' word on each tensor of ``files``, in that order."""
    by_file: dict[Path, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    found: dict[str, StoredTensor] = {}
    for path, names in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name in names:
                entry = file.get_slice(name)
                shape = tuple(entry.get_shape())
                found[name] = StoredTensor(name, entry.get_dtype(), shape, path.name)
    return {name: found[name] for name in files}
