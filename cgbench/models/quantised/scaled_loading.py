"""Load FP8 weights into transformers' modules as they are stored.

transformers' own conversions rename weights, and stack and join those of experts. Scales must go
the same way. So they take the weights' names, and are loaded into a model without storage whose
parameters have the scales' shapes.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Size, Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from cgbench.errors import ModelError
from cgbench.kernels.fp8.block_scales import FP8, has_nan_codes, row_blocks_of
from cgbench.models.checkpoint import StoredTensor, read_tensor
from cgbench.models.experts import num_fused
from cgbench.models.quantised.scaled_files import ScaledFiles, check_codes, normal_shape, read_scale
from cgbench.models.quantised.scaled_modules import set_scales


def convert(
    model: PreTrainedModel, tensors: Mapping[str, Any], dtype: torch.dtype, device: str = "meta"
) -> Any:
    """Make transformers place ``tensors`` by their stored names, and return its report on them."""
    # Imported here, because they are inner parts of transformers that only this path needs.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    settings = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": device},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),
    )
    info, _ = convert_and_load_state_dict_in_model(model, dict(tensors), settings)
    return info


def placed_scales(
    where: str,
    model: PreTrainedModel,
    files: ScaledFiles,
    stored: Mapping[str, StoredTensor],
) -> dict[str, Size]:
    """Return the parameters of ``model`` that are FP8, and their scales' shapes.

    ``model`` is on the meta device. Raise ``ModelError`` if experts of one layer are FP8 in part.
    """
    shapes = {
        name: normal_shape(scale.shape, stored[name].shape) for name, scale in files.scales.items()
    }
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    info = convert(copy.deepcopy(model), empty, torch.float32)
    if info.conversion_errors:
        raise ModelError(
            f"MODEL {where}: {min(info.conversion_errors)}: some of its parts are FP8, some are not"
        )
    found = {name: Size(shape) for name, shape, _ in info.mismatched_keys}
    for name, shape in found.items():
        _check_parts(where, name, model.get_parameter(name).shape, shape, files)
    return found


def _check_parts(where: str, name: str, weight: Size, scale: Size, files: ScaledFiles) -> None:
    parts = num_parts(name, files)
    if weight[-2] % parts or scale[-2] % parts or len(weight) != len(scale):
        raise ModelError(
            f"MODEL {where}: {name} of {tuple(weight)} cannot have scales of {tuple(scale)}"
        )


def num_parts(name: str, files: ScaledFiles) -> int:
    """Return how many stored weights are stacked in the parameter ``name``."""
    leaf = name.rpartition(".")[2]
    is_stored_fused = any(each.endswith(f".{leaf}") for each in files.scales)
    return 1 if is_stored_fused else num_fused(name)


def load_scaled(
    model: PreTrainedModel,
    scaled: Mapping[str, Size],
    files: ScaledFiles,
    paths: Mapping[str, Path],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Fill ``model``, which is on the meta device, from ``paths``. FP8 weights stay as they are.

    Nothing is held twice except the tensor that is being placed. Return transformers' report on the
    tensors. Raise ``ModelError`` for a weight that holds NaN.
    """
    scales = _read_scales(model, scaled, files, paths, device)
    for name in scaled:
        stored = torch.empty(model.get_parameter(name).shape, dtype=FP8, device="meta")
        _set_parameter(model, name, stored)
    with _slices(paths, files.rest(paths)) as slices:
        info = convert(model, slices, dtype, str(device))
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    _make_buffers(model, device)
    _check_codes(model, scaled, files, paths)
    for name in scaled:
        owner, leaf = _owner(model, name)
        scale = scales[name]
        rows, blocks = model.get_parameter(name).shape[-2], scale.shape[-2]
        set_scales(owner, leaf, scale, row_blocks_of(rows, blocks, num_parts(name, files)))
    return info


def _check_codes(
    model: PreTrainedModel,
    scaled: Mapping[str, Size],
    files: ScaledFiles,
    paths: Mapping[str, Path],
) -> None:
    """Check the FP8 weights where they were placed, because a device reads them fastest.

    Only if one holds NaN are the files read again, for the tensor's name in them.
    """
    placed = (model.get_parameter(name) for name in scaled)
    if not any(has_nan_codes(weight) for weight in placed if not weight.is_meta):
        return
    for name in files.scales:
        path = paths[name]
        check_codes(f"MODEL {path.parent}", path, name, read_tensor(path, name))


def _read_scales(
    model: PreTrainedModel,
    scaled: Mapping[str, Size],
    files: ScaledFiles,
    paths: Mapping[str, Path],
    device: torch.device,
) -> dict[str, Tensor]:
    holder = copy.deepcopy(model)
    for name, shape in scaled.items():
        _set_parameter(holder, name, torch.empty(shape, device="meta"))
    tensors = {
        name: read_scale(paths[scale.name], scale.name, files.weight_shapes[name])
        for name, scale in files.scales.items()
    }
    convert(holder, tensors, torch.float32, str(device))
    return {name: holder.get_parameter(name).detach() for name in scaled}


@contextmanager
def _slices(paths: Mapping[str, Path], names: list[str]) -> Iterator[dict[str, object]]:
    """Yield tensors by name. Each is read when it is placed."""
    with ExitStack() as stack:
        opened = {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in {paths[name] for name in names}
        }
        yield {name: opened[paths[name]].get_slice(name) for name in names}


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _set_parameter(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, leaf = _owner(model, name)
    owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _make_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Make what no checkpoint stores: rotary frequencies, an embedding's scale."""
    for module in model.modules():
        buffers = {leaf: each for leaf, each in module._buffers.items() if each is not None}
        lacking = {leaf: each for leaf, each in buffers.items() if each.is_meta}
        for leaf, each in lacking.items():
            module._buffers[leaf] = torch.empty_like(each, device=device)
        if lacking:
            model._init_weights(module)


def read_generation_config(model: PreTrainedModel, ref: str) -> None:
    """Give ``model`` the generation config of the folder or hub id ``ref``, if there is one."""
    try:
        model.generation_config = GenerationConfig.from_pretrained(ref)
    except OSError:
        return
