"""From a model reference on the command line to a target, its head and its tokenizer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cgbench.errors import ModelError
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.checkpoint import (
    check_files,
    check_ref,
    config_from_dict,
    detect_family,
    first_line,
    read_config,
    read_head_tensors,
    tensor_files,
)
from cgbench.models.families import MIMO
from cgbench.models.head import DraftHead
from cgbench.models.presets import PRESETS
from cgbench.models.target import Target, check_config

DEFAULT_MODEL = "default"
PRESET_PREFIX = "preset:"
DEFAULT_MODEL_DIR = Path(__file__).parent / "default"

# The standard deviation that transformers itself initialises these families with.
RANDOM_STD = 0.02

_M = TypeVar("_M")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """``ref`` is ``default``, ``preset:NAME``, a folder or a hub id; ``head_ref`` a folder or hub
    id whose head replaces the checkpoint's own; ``with_head`` is false for k = 0 alone."""

    ref: str
    head_ref: str | None
    with_head: bool
    device: torch.device
    dtype: torch.dtype
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``label`` and ``head_label`` are what every output calls them, "random weights" included.
    ``tokenizer`` is None where the checkpoint ships none (presets never do)."""

    target: Target
    head: DraftHead | None
    tokenizer: PreTrainedTokenizerBase | None
    label: str
    head_label: str
    random_weights: bool
    eos_token_ids: tuple[int, ...]


def check_model_ref(ref: str) -> None:
    """Refuse early what no loading could find: an unknown preset, a folder that is not there.

    Raises ``ModelError``.
    """
    if not ref.startswith(PRESET_PREFIX):
        check_ref("MODEL", ref)
    elif ref.removeprefix(PRESET_PREFIX) not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ModelError(f"MODEL {ref}: unknown preset; choose one of {known}")


def load_model(request: ModelRequest) -> LoadedModel:
    """Load, or for a preset make, the target and its head on the device asked for.

    Raises ``ModelError``, ``MissingHeadError`` or ``UnsupportedModelError``.
    """
    _quiet_transformers()
    check_model_ref(request.ref)
    if request.ref.startswith(PRESET_PREFIX):
        return _make_preset(request)
    ref = str(DEFAULT_MODEL_DIR) if request.ref == DEFAULT_MODEL else request.ref
    config = read_config(ref)
    check_config(config)
    if request.head_ref is not None:
        check_ref("--head", request.head_ref)
    target = Target(_load_target(ref, config, request))
    head = _load_head(request.head_ref or ref, target) if request.with_head else None
    return LoadedModel(
        target=target,
        head=head,
        tokenizer=_load_tokenizer(ref),
        label=_label(request.ref),
        head_label=_head_label(request, head),
        random_weights=False,
        eos_token_ids=_eos_token_ids(target.model),
    )


def _load_target(ref: str, config: PretrainedConfig, request: ModelRequest) -> PreTrainedModel:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            ref,
            config=config,
            dtype=request.dtype,
            attn_implementation=ATTENTION_NAME,
            output_loading_info=True,
            # So that a tensor of another shape is reported by name, below.
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        check_files(ref)
        raise ModelError(f"MODEL {ref}: {first_line(error)}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(_name(entry) for entry in info[what]):
            problem = "missing" if what == "missing_keys" else "of another shape than config.json's"
            raise ModelError(
                f"MODEL {ref}: {len(names)} tensors are {problem}, "
                f"{', '.join(names[:3])} among them"
            )
    return model.to(request.device)


def _name(entry: str | tuple[Any, ...]) -> str:
    """A tensor's name in transformers' loading info, where a mismatch carries its shapes too."""
    return entry if isinstance(entry, str) else str(entry[0])


def _load_head(ref: str, target: Target) -> DraftHead:
    files = tensor_files(ref)
    family = detect_family(ref, files)
    with torch.device("meta"):
        head = DraftHead(family, target.model)
    head.load_tensors(read_head_tensors(ref, head, files))
    return head.to(device=target.device, dtype=target.dtype).eval()


def _load_tokenizer(ref: str) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(ref)
    except (OSError, ValueError, KeyError):
        return None


def _make_preset(request: ModelRequest) -> LoadedModel:
    name = request.ref.removeprefix(PRESET_PREFIX)
    if request.head_ref is not None:
        raise ModelError(f"--head: {request.ref} makes its own head; drop the flag")
    config = config_from_dict(dict(PRESETS[name].config))
    torch.manual_seed(request.seed)
    model = _on_device(
        request,
        lambda: AutoModelForCausalLM.from_config(
            config, dtype=request.dtype, attn_implementation=ATTENTION_NAME
        ),
    )
    target = Target(model)
    head = None
    if request.with_head:
        head = _on_device(request, lambda: DraftHead(MIMO, target.model)).to(request.dtype).eval()
        randomise(head)
    return LoadedModel(
        target=target,
        head=head,
        tokenizer=None,
        label=f"{request.ref} (random weights)",
        head_label=f"{MIMO.name} (random weights)" if head is not None else "none",
        random_weights=True,
        eos_token_ids=_eos_token_ids(target.model),
    )


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


def _label(ref: str) -> str:
    path = Path(ref)
    return path.resolve().name if path.is_dir() else ref


def _head_label(request: ModelRequest, head: DraftHead | None) -> str:
    if head is None:
        return "none"
    if request.head_ref is None:
        return head.family.name
    return f"{head.family.name}:{_label(request.head_ref)}"


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)


def _quiet_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
