"""A model without its weights: what it is, what it needs and whether it can run, before loading."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from cgbench.errors import UnsupportedModelError
from cgbench.models.attention_hook import ATTENTION_NAME, ShapeProbe
from cgbench.models.checkpoint import first_line
from cgbench.models.families import HeadFamily
from cgbench.models.head import DraftHead, HeadForm
from cgbench.models.support import HOST_READ_ROPE_TYPES, auto_class_for, class_name
from cgbench.models.target import Target, probe_kv_shapes


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The modules on torch's meta device: shapes without storage."""

    target: Target
    head: DraftHead | None
    kv: ShapeProbe

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the target's weights; tied ones count once."""
        return _num_elements(self.target.model) * dtype.itemsize

    def head_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the head's own weights, 0 without a head."""
        return 0 if self.head is None else _num_elements(self.head) * dtype.itemsize

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
    config: PretrainedConfig, family: HeadFamily | None, form: HeadForm | None = None
) -> Skeleton:
    """The model of ``config`` and its head of ``family`` on the meta device, one token run through.

    Running it is what proves that every layer's attention can be taken over and that nothing in
    the forward depends on tensor values. Raises ``UnsupportedModelError``.
    """
    return with_head(make_target(config), family, form)


def make_target(config: PretrainedConfig) -> Target:
    """The model of ``config`` on the meta device, nothing run. Raises ``UnsupportedModelError``."""
    with _told(config), torch.device("meta"):
        # Experts in grouped_mm want bfloat16, on the meta device too.
        model = auto_class_for(config).from_config(
            _without_host_read_rope(config),
            dtype=torch.bfloat16,
            attn_implementation=ATTENTION_NAME,
        )
        return Target(model)


def with_head(target: Target, family: HeadFamily | None, form: HeadForm | None = None) -> Skeleton:
    """A target on the meta device and its head of ``family`` there, one token run through both."""
    with _told(target.model.config), torch.device("meta"):
        head = None
        if family is not None:
            head = DraftHead(family, target.model, form).to(torch.bfloat16)
        return Skeleton(target, head, probe_kv_shapes(target, head))


@contextmanager
def _told(config: PretrainedConfig) -> Iterator[None]:
    """Whatever a model that nobody has tried here raises, it means the same to the user."""
    try:
        yield
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"MODEL: {class_name(config)} cannot be run through transformers' "
            f"AttentionInterface: {first_line(error)}"
        ) from error


def _without_host_read_rope(config: PretrainedConfig) -> PretrainedConfig:
    """A copy whose rotary types do not read positions: they change no shape, and eager scopes may
    run them all the same."""
    plain = copy.deepcopy(config)
    parameters = getattr(plain.get_text_config(), "rope_parameters", None) or {}
    for each in [parameters, *(v for v in parameters.values() if isinstance(v, dict))]:
        if each.get("rope_type") in HOST_READ_ROPE_TYPES:
            each["rope_type"] = "default"
    return plain


def _num_elements(module: nn.Module) -> int:
    """Of parameters and stored buffers; a tied one is one object under two names."""
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in tensors.values())
