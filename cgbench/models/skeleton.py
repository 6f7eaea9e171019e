"""Build a model without its weights, to find out what it needs and whether it runs."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Size, nn
from transformers import PretrainedConfig

from cgbench.errors import ModelError, UnsupportedModelError, first_line
from cgbench.models.attention_hook import ATTENTION_NAME, ShapeProbe, is_latent
from cgbench.models.config_faults import fault_of
from cgbench.models.division.splits import kv_copies
from cgbench.models.heads.any_head import make_head
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.quantised.kv_format import PLAIN, KvFormat
from cgbench.models.support import HOST_READ_ROPE_TYPES, auto_class_for, class_name
from cgbench.models.target import Target, probe_kv_shapes


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A skeleton is a target and its head on torch's meta device: shapes without storage.

    ``kv`` holds the shapes that one token's forward has shown.
    """

    target: Target
    head: DraftHead | None
    kv: ShapeProbe
    scaled: Mapping[str, Size] = field(default_factory=dict)
    """The target's FP8 parameters and their scales' shapes. The parameters have another type
    here."""
    head_scaled: Mapping[str, Size] = field(default_factory=dict)
    """The head's FP8 parameters and their scales' shapes."""

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the target's weights as they are held, scales included.

        Tied weights count once.
        """
        keeps = kept_in_float32(self.target.model, dtype)
        return _num_bytes(self.target.model, self.scaled, dtype, keeps)

    def head_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the head's own weights, or 0 without a head."""
        if self.head is None:
            return 0
        keeps = kept_in_float32(self.target.model, dtype)
        return _num_bytes(self.head, self.head_scaled, dtype, keeps)

    def kv_bytes_per_token(
        self, dtype: torch.dtype, num_ranks: int = 1, kv_format: KvFormat = PLAIN
    ) -> int:
        """Return the bytes of KV that one token keeps on each of ``num_ranks`` ranks.

        They are those of all layers and of the head, the scales of FP8 ones included. Ranks divide
        the heads of keys and values. Of fewer heads than ranks each rank holds one. Latents are
        whole on each.
        """
        return sum(
            kv_format.bytes_per_token(layer, shape, dtype) // min(shape[0][0], num_ranks)
            for layer, shape in self.kv.kv_shapes.items()
        )

    def kv_copies(self, num_ranks: int) -> int:
        """Return how many of ``num_ranks`` ranks hold one head of keys and values, at most.

        It is 1 if no layer has fewer heads than there are ranks, latents apart.
        """
        shapes = [shape for shape in self.kv.kv_shapes.values() if not is_latent(shape)]
        return max([kv_copies(heads, num_ranks) for (heads, _), _ in shapes], default=1)

    @property
    def latent_size(self) -> int | None:
        """Values that a layer of latent attention keeps of a token, its rotary key's included.
        None where no layer keeps latents."""
        shapes = self.kv.kv_shapes.values()
        return next((keys[1] for keys, values in shapes if is_latent((keys, values))), None)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of recurrent state that one request keeps, over all layers.

        They do not depend on its length.
        """
        return sum(shape.num_bytes(dtype.itemsize) for shape in self.kv.state_shapes.values())

    def state_bytes_per_row(self, dtype: torch.dtype) -> int:
        """Return the bytes kept of each verified row, over all layers.

        The state after the row is made from them.
        """
        return sum(shape.row_bytes(dtype) for shape in self.kv.state_shapes.values())


def make_skeleton(
    config: PretrainedConfig,
    family: HeadFamily | None,
    forms: Sequence[HeadForm] = (),
    *,
    where: str = "MODEL",
    keeps_latents: bool = True,
) -> Skeleton:
    """Return the model of ``config`` and its head of ``family``, on the meta device.

    One token is run through them. That proves that every layer's attention can be taken over, and
    that nothing in the forward depends on tensor values. Raise ``UnsupportedModelError`` if it
    fails. Raise ``ModelError`` if transformers itself cannot run the model. Then its config, read
    from ``where``, is at fault.
    """
    target = make_target(config, where)
    return with_head(target, family, forms, where=where, keeps_latents=keeps_latents)


def make_target(config: PretrainedConfig, where: str = "MODEL") -> Target:
    """Return the model of ``config`` on the meta device. Nothing is run.

    Raise the errors of ``make_skeleton``.
    """
    with _told(config, where), torch.device("meta"):
        # Experts in grouped_mm need bfloat16, on the meta device too.
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
    keeps_latents: bool = True,
) -> Skeleton:
    """Return the skeleton of a target on the meta device and a head of ``family``.

    The head has a module for each of ``forms``. One token is run through all. Raise the errors of
    ``make_skeleton``.
    """
    with _told(target.model.config, where), torch.device("meta"):
        head = None
        if family is not None:
            head = make_head(family, target.model, forms).to(torch.bfloat16)
            target.watch_layers(head.aux_layers)
        probe = probe_kv_shapes(target, head, keeps_latents=keeps_latents)
        return Skeleton(target, head, probe)


@contextmanager
def _told(config: PretrainedConfig, where: str) -> Iterator[None]:
    """Turn any error of a model that nobody has tried here into one of ours.

    All such errors mean the same to the user.
    """
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
    """Return what fails if transformers makes and runs the model alone, or None.

    Missing values on the meta device are no fault of a config.
    """
    try:
        with torch.device("meta"):
            model = auto_class_for(config).from_config(
                _without_host_read_rope(config), dtype=torch.bfloat16, attn_implementation="eager"
            )
            ids = torch.zeros(1, 1, dtype=torch.long)
            # The mask is finished, because transformers reads values to make one.
            mask = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
            model.eval()(input_ids=ids, attention_mask=mask, use_cache=False)
    except Exception as error:
        return None if _is_of_meta(error) else fault_of(error, config.to_dict())
    return None


def _is_of_meta(error: Exception) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _without_host_read_rope(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy whose rotary types do not read positions.

    They change no shape, and eager scopes may run them all the same.
    """
    plain = copy.deepcopy(config)
    parameters = getattr(plain.get_text_config(), "rope_parameters", None) or {}
    for each in [parameters, *(v for v in parameters.values() if isinstance(v, dict))]:
        if each.get("rope_type") in HOST_READ_ROPE_TYPES:
            each["rope_type"] = "default"
    return plain


def stored_bytes(weight: Size, scale: Size) -> int:
    """Return the bytes of an FP8 weight and of its scales."""
    return weight.numel() + scale.numel() * torch.float32.itemsize


def _scaled_bytes(module: nn.Module, scaled: Mapping[str, Size]) -> int:
    return sum(
        stored_bytes(module.get_parameter(name).shape, scale) for name, scale in scaled.items()
    )


def plain_bytes(name: str, shape: Size, dtype: torch.dtype, keeps: Callable[[str], bool]) -> int:
    """Return the bytes of a tensor that is not FP8, in a model held in ``dtype``.

    ``keeps`` says which stay in float32: see ``kept_in_float32``.
    """
    return shape.numel() * (torch.float32 if keeps(name) else dtype).itemsize


def _num_bytes(
    module: nn.Module,
    scaled: Mapping[str, Size],
    dtype: torch.dtype,
    keeps: Callable[[str], bool],
) -> int:
    """Return the bytes of parameters and stored buffers.

    A tied one is one object under two names, and counts once.
    """
    tensors = module.state_dict(keep_vars=True)
    counted = {id(tensors[name]) for name in scaled}
    others = {id(tensor): name for name, tensor in tensors.items() if id(tensor) not in counted}
    plain = sum(plain_bytes(name, tensors[name].shape, dtype, keeps) for name in others.values())
    return plain + _scaled_bytes(module, scaled)
