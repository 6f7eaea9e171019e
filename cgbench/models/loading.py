"""Loading, or for a preset making, the target, its head and its tokenizer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cgbench.errors import ModelError
from cgbench.models.attention_hook import ATTENTION_NAME, KvShape
from cgbench.models.checkpoint import check_files, first_line
from cgbench.models.gguf import gguf_keywords, load_gguf_tokenizer
from cgbench.models.head import DraftHead
from cgbench.models.head_files import read_head
from cgbench.models.packing import pack_projections
from cgbench.models.recurrent_hook import StateShape
from cgbench.models.request import LoadingPlan, ModelRequest, plan_loading
from cgbench.models.skeleton import Skeleton
from cgbench.models.support import auto_class_for
from cgbench.models.target import Target

# The standard deviation that transformers itself initialises these families with.
RANDOM_STD = 0.02

_M = TypeVar("_M")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``label`` and ``head_label`` are what every output calls them, "random weights" included.
    ``tokenizer`` is None where the checkpoint ships none (presets never do). ``num_head_modules``
    counts the checkpoint's MTP modules, of which the first is used. ``kv_shapes``: each attention
    layer's, the head's included. ``state_shapes``: each linear-attention layer's. ``skeleton``: the
    same modules as their own code has them, no storage."""

    target: Target
    head: DraftHead | None
    tokenizer: PreTrainedTokenizerBase | None
    label: str
    head_label: str
    random_weights: bool
    eos_token_ids: tuple[int, ...]
    num_head_modules: int
    kv_shapes: Mapping[int, KvShape]
    state_shapes: Mapping[int, StateShape]
    skeleton: Skeleton


def load_model(what: ModelRequest | LoadingPlan) -> LoadedModel:
    """Load, or for a preset make, the target and its head on the device asked for.

    Raises ``ModelError``, ``MissingHeadError`` or ``UnsupportedModelError``.
    """
    plan = plan_loading(what) if isinstance(what, ModelRequest) else what
    random_weights = plan.request.preset is not None
    target = Target(_make_target(plan) if random_weights else _load_target(plan))
    head = _make_head(plan, target) if random_weights else _load_head(plan, target)
    for module in (target.model, head):
        if module is not None:
            pack_projections(module)
    return LoadedModel(
        target=target,
        head=head,
        tokenizer=None if random_weights else _load_tokenizer(plan),
        label=plan.label,
        head_label=plan.head_label,
        random_weights=random_weights,
        eos_token_ids=_eos_token_ids(target.model),
        kv_shapes=plan.skeleton.kv.kv_shapes,
        state_shapes=plan.skeleton.kv.state_shapes,
        skeleton=plan.skeleton,
        num_head_modules=1 if plan.head_files is None else plan.head_files.num_modules,
    )


def _implementations(plan: LoadingPlan) -> dict[str, str]:
    """Which of transformers' implementations the forward uses.

    Experts: ``grouped_mm`` reads no tensor on the host, so it can be captured, but on CUDA its
    kernel knows bfloat16 alone; ``batched_mm`` copies weights for each token, which only small
    models bear.
    """
    chosen = {"attn_implementation": ATTENTION_NAME}
    if plan.skeleton.target.has_experts:
        request = plan.request
        in_other_dtype = request.device.type == "cuda" and request.dtype != torch.bfloat16
        chosen["experts_implementation"] = "batched_mm" if in_other_dtype else "grouped_mm"
    return chosen


def _load_target(plan: LoadingPlan) -> PreTrainedModel:
    request, ref = plan.request, plan.request.path
    try:
        model, info = auto_class_for(plan.config).from_pretrained(
            ref if plan.gguf_file is None else str(plan.gguf_file.parent),
            config=plan.config,
            dtype=request.dtype,
            output_loading_info=True,
            # So that a tensor of another shape is reported by name, below.
            ignore_mismatched_sizes=True,
            **_implementations(plan),
            **gguf_keywords(plan.gguf_file),
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        check_files(ref)
        raise ModelError(f"MODEL {ref}: {first_line(error)}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(_name(entry) for entry in info[what]):
            problem = "missing" if what == "missing_keys" else "of another shape than config.json's"
            raise ModelError(
                f"MODEL {ref}: {len(names)} tensors are {problem}, "
                f"{', '.join(names[:3])} among them"
            )
    loaded: PreTrainedModel = model.to(request.device)
    return loaded


def _name(entry: str | tuple[Any, ...]) -> str:
    """A tensor's name in transformers' loading info, where a mismatch carries its shapes too."""
    return entry if isinstance(entry, str) else str(entry[0])


def _load_head(plan: LoadingPlan, target: Target) -> DraftHead | None:
    if plan.family is None or plan.head_files is None:
        return None
    with torch.device("meta"):
        head = DraftHead(plan.family, target.model, proj_bias=plan.head_files.proj_bias)
    read_head(head, plan.head_files)
    return head.to(device=target.device, dtype=target.dtype).eval()


def _load_tokenizer(plan: LoadingPlan) -> PreTrainedTokenizerBase | None:
    try:
        if plan.gguf_file is not None:
            return load_gguf_tokenizer(plan.gguf_file)
        return AutoTokenizer.from_pretrained(plan.request.path)
    # transformers looks up what a GGUF file does not state as an attribute.
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _make_target(plan: LoadingPlan) -> PreTrainedModel:
    torch.manual_seed(plan.request.seed)
    made: PreTrainedModel = _on_device(
        plan.request,
        lambda: auto_class_for(plan.config).from_config(
            plan.config, dtype=plan.request.dtype, **_implementations(plan)
        ),
    )
    return made


def _make_head(plan: LoadingPlan, target: Target) -> DraftHead | None:
    family = plan.family
    if family is None:
        return None
    head = _on_device(plan.request, lambda: DraftHead(family, target.model))
    head = head.to(plan.request.dtype).eval()
    randomise(head)
    return head


def _on_device(request: ModelRequest, make: Callable[[], _M]) -> _M:
    with torch.device(request.device):
        return make()


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Matrices normal with transformers' own deviation, norms' weights one, biases zero."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=RANDOM_STD)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
