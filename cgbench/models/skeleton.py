"""A skeleton is a model without its weights. It shows what a model needs and whether it runs."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Size, nn
from transformers import PretrainedConfig

from cgbench.errors import ModelError, UnsupportedModelError, first_line
from cgbench.models.attention_hook import ATTENTION_NAME, ShapeProbe
from cgbench.models.config_faults import fault_of
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.support import HOST_READ_ROPE_TYPES, auto_class_for, class_name
from cgbench.models.target import Target, probe_kv_shapes


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The modules on torch's meta device: shapes without storage."""

    target: Target
    head: DraftHead | None
    kv: ShapeProbe
    scaled: Mapping[str, Size] = field(default_factory=dict)
    """The target's FP8 parameters, which have no such type here, and their scales' shapes."""
    head_scaled: Mapping[str, Size] = field(default_factory=dict)
    """The head's."""

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the target's weights as they are held, scales included; tied ones count once."""
        return _num_bytes(self.target.model, self.scaled, dtype)

    def head_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the head's own weights, 0 without a head."""
        return 0 if self.head is None else _num_bytes(self.head, self.head_scaled, dtype)

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values that one token keeps, over all layers and the head's."""
        sizes = (heads * size for shape in self.kv.kv_shapes.values() for heads, size in shape)
        return sum(sizes) * dtype.itemsize

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of recurrent state that one request keeps, of any length, over all layers."""
        return sum(shape.num_bytes(dtype.itemsize) for shape in self.kv.state_shapes.values())

    def state_bytes_per_row(self, dtype: torch.dtype) -> int:
        """Bytes kept of each verified row, to make the state after it, over all layers."""
        return sum(shape.row_bytes(dtype) for shape in self.kv.state_shapes.values())


def make_skeleton(
    config: PretrainedConfig,
    family: HeadFamily | None,
    forms: Sequence[HeadForm] = (),
    *,
    where: str = "MODEL",
) -> Skeleton:
    """The model of ``config`` and its head of ``family`` on the meta device, one token run through.

    Running it is what proves that every layer's attention can be taken over and that nothing in
    the forward depends on tensor values. Raises ``UnsupportedModelError``, and ``ModelError`` where
    transformers itself cannot run the model: its config, read from ``where``, is at fault.
    """
    return with_head(make_target(config, where), family, forms, where=where)


def make_target(config: PretrainedConfig, where: str = "MODEL") -> Target:
    """The model of ``config`` on the meta device, nothing run. Raises as ``make_skeleton``."""
    with _told(config, where), torch.device("meta"):
        # Experts in grouped_mm want bfloat16, on the meta device too.
        model = auto_class_for(config).from_config(
            _without_host_read_rope(config),
            dtype=torch.bfloat16,
            attn_implementation=ATTENTION_NAME,
        )
        return Target(model)


def with_head(
    target: Target,
    family: HeadFamily | None,
    forms: Sequence[HeadForm] = (),
    *,
    where: str = "MODEL",
) -> Skeleton:
    """A target on the meta device and its head of ``family`` there, a module for each of ``forms``,
    one token run through all. Raises as ``make_skeleton``."""
    with _told(target.model.config, where), torch.device("meta"):
        head = None
        if family is not None:
            head = DraftHead(family, target.model, *forms).to(torch.bfloat16)
        return Skeleton(target, head, probe_kv_shapes(target, head))


@contextmanager
def _told(config: PretrainedConfig, where: str) -> Iterator[None]:
    """Whatever a model that nobody has tried here raises, it means the same to the user."""
    try:
        yield
    except UnsupportedModelError:
        raise
    except Exception as error:
        if (fault := _config_fault(config)) is not None:
            raise ModelError(
                f"{where}: gives no {class_name(config)} that transformers can run: {fault}"
            ) from error
        raise UnsupportedModelError(
            f"MODEL: {class_name(config)} cannot be run through transformers' "
            f"AttentionInterface: {first_line(error)}"
        ) from error


@torch.no_grad()
def _config_fault(config: PretrainedConfig) -> str | None:
    """What fails where transformers makes and runs the model alone; None where that works.

    That there are no values on the meta device is no fault of a config.
    """
    try:
        with torch.device("meta"):
            model = auto_class_for(config).from_config(
                _without_host_read_rope(config), dtype=torch.bfloat16, attn_implementation="eager"
            )
            ids = torch.zeros(1, 1, dtype=torch.long)
            # A finished mask, because transformers reads values to make one.
            mask = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
            model.eval()(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:
        return None if _is_of_meta(error) else fault_of(error, config.to_dict())
    return None


def _is_of_meta(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _without_host_read_rope(config: PretrainedConfig) -> PretrainedConfig:
    """A copy whose rotary types do not read positions: they change no shape, and eager scopes may
    run them all the same."""
    plain = copy.deepcopy(config)
    parameters = getattr(plain.get_text_config(), "rope_parameters", None) or {}
    for each in [parameters, *(v for v in parameters.values() if isinstance(v, dict))]:
        if each.get("rope_type") in HOST_READ_ROPE_TYPES:
            each["rope_type"] = "default"
    return plain


def stored_bytes(weight: Size, scale: Size) -> int:
    """Bytes of an FP8 weight and of its scales."""
    return weight.numel() + scale.numel() * torch.float32.itemsize


def _scaled_bytes(module: nn.Module, scaled: Mapping[str, Size]) -> int:
    return sum(
        stored_bytes(module.get_parameter(name).shape, scale) for name, scale in scaled.items()
    )


def _num_bytes(module: nn.Module, scaled: Mapping[str, Size], dtype: torch.dtype) -> int:
    """Of parameters and stored buffers; a tied one is one object under two names."""
    tensors = module.state_dict(keep_vars=True)
    others = {id(tensor): tensor for name, tensor in tensors.items() if name not in scaled}
    plain: int = sum(tensor.numel() for tensor in others.values()) * dtype.itemsize
    return plain + _scaled_bytes(module, scaled)
