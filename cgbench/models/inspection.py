"""What a checkpoint holds and what would be loaded from where, without loading a weight."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from torch import nn

from cgbench.errors import MissingHeadError, ModelError, UnsupportedModelError
from cgbench.models.checkpoint import StoredTensor, stored_tensors, tensor_files
from cgbench.models.heads.head import adds_one
from cgbench.models.heads.head_copies import HeadCopy
from cgbench.models.heads.head_files import head_tensors
from cgbench.models.loading_plan import LoadingPlan, ModelRequest, plan_loading
from cgbench.models.placement import check_headers
from cgbench.models.support import check_capturable, class_name
from cgbench.models.target import Target

_T = TypeVar("_T")


class FileFacts(TypedDict):
    """Bytes by file, and how many tensors have which type; None where that is not counted."""

    files: dict[str, int]
    dtypes: dict[str, int] | dict[str, None]


# Not classes, because two of the keys are words of Python.
HeadFacts = TypedDict(
    "HeadFacts",
    {
        "family": str,
        "label": str,
        "source": str,
        "modules": int,
        "concat": str,
        "hidden_in": str,
        "chain": str,
        "out_norm": str,
        "norm_form": str,
        "first_embed": str,
        "target_norms": str,
        "copies": list[dict[str, str]],
        "num_tensors": int,
        "weight_bytes": int,
        "from": str | None,
    },
)
TargetFacts = TypedDict(
    "TargetFacts",
    {
        "class": str,
        "num_layers": int,
        "hidden_size": int,
        "vocab_size": int,
        "max_positions": int,
        "experts": bool,
        "tied_embeddings": bool,
        "dtype": str,
        "weight_bytes": int,
    },
)


class Facts(TargetFacts):
    """What ``--json`` has."""

    model: str
    checkpoint: FileFacts | None
    head: HeadFacts | None
    kv_bytes_per_token: int
    state_bytes_per_request: int
    state_bytes_per_verified_row: int
    weights_problem: str | None
    head_problem: str | None
    capture_problem: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """``facts`` is what a script reads; ``head_tensors`` what would be loaded into the head."""

    facts: Facts
    head_tensors: tuple[StoredTensor, ...]

    @property
    def is_usable(self) -> bool:
        """Whether all weights are there, with a head, and its graphs can be captured."""
        facts = self.facts
        problems = (facts["weights_problem"], facts["head_problem"], facts["capture_problem"])
        return all(problem is None for problem in problems)


def inspect_model(request: ModelRequest) -> Inspection:
    """Everything that ``cgbench run`` would find out before it spends memory.

    Weights or a head that are not there, or a forward that cannot be captured, are findings and
    not errors.
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
    facts: Facts = {
        "model": plan.label,
        **_target_facts(plan),
        "checkpoint": _checkpoint_facts(plan),
        "head": _head_facts(plan, tensors),
        "kv_bytes_per_token": plan.skeleton.kv_bytes_per_token(request.dtype),
        "state_bytes_per_request": plan.skeleton.state_bytes(request.dtype),
        "state_bytes_per_verified_row": plan.skeleton.state_bytes_per_row(request.dtype),
        "weights_problem": _refusal(check_headers, plan),
        "head_problem": head_problem,
        "capture_problem": _refusal(check_capturable, plan.config),
    }
    return Inspection(facts, tensors)


def _refusal(check: Callable[[_T], None], of: _T) -> str | None:
    try:
        check(of)
    except (ModelError, UnsupportedModelError) as error:
        return str(error)
    return None


def _without_head(request: ModelRequest) -> ModelRequest:
    return ModelRequest(request.ref, None, False, request.device, request.dtype)


def _target_facts(plan: LoadingPlan) -> TargetFacts:
    target, dtype = plan.skeleton.target, plan.request.dtype
    return {
        "class": class_name(plan.config),
        "num_layers": target.num_layers,
        "hidden_size": target.hidden_size,
        "vocab_size": target.vocab_size,
        "max_positions": target.max_positions,
        "experts": plan.skeleton.target.has_mixtures,
        "tied_embeddings": bool(plan.config.get_text_config().tie_word_embeddings),
        "dtype": str(dtype).removeprefix("torch."),
        "weight_bytes": plan.skeleton.weight_bytes(dtype),
    }


def _checkpoint_facts(plan: LoadingPlan) -> FileFacts | None:
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


def _head_facts(plan: LoadingPlan, tensors: tuple[StoredTensor, ...]) -> HeadFacts | None:
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
        "target_norms": _norm_form(plan.skeleton.target),
        "copies": [] if found is None else [_copy_facts(copy) for copy in found.copies],
        "num_tensors": len(tensors),
        "weight_bytes": plan.skeleton.head_bytes(plan.request.dtype),
        "from": None if found is None else plan.request.head_ref or plan.request.ref,
    }


def _norm_form(target: Target) -> str:
    norm = target.backbone.norm
    assert isinstance(norm, nn.Module)
    return "one_plus" if adds_one(norm) else "plain"


def _copy_facts(copy: HeadCopy) -> dict[str, str]:
    return {"what": copy.what, "name": copy.name, "use": copy.use.value}


def _head_tensors(plan: LoadingPlan) -> tuple[StoredTensor, ...]:
    """What would be loaded into the head, in the head's own order."""
    head, found = plan.skeleton.head, plan.head_files
    if head is None or found is None:
        return ()
    names = [name for parts in head_tensors(head, found).values() for name in parts]
    stored = stored_tensors({found.stored_as[name]: found.files[name] for name in names})
    return tuple(stored[found.stored_as[name]] for name in names)
