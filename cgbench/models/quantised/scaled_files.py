"""Find the FP8 weights in a checkpoint's files, and read the scales stored beside them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cgbench.errors import ModelError
from cgbench.kernels.fp8.block_scales import has_nan_codes
from cgbench.models.checkpoint import StoredTensor, read_tensor
from cgbench.models.quantised.scheme import BLOCK, Fp8Scheme

E4M3 = "F8_E4M3"
SCALE_ENDINGS = ("_scale_inv", "_scale")
"""The name of a weight's scales is the weight's name with one of these endings."""
_SCALE_TYPES = {"F32", "BF16", "F16", "F8_E8M0"}

# Scales of activations and of keys and values. Weight-only products have no use for them.
UNUSED = (".input_scale", ".activation_scale", ".q_scale", ".k_scale", ".v_scale", ".output_scale")


@dataclass(frozen=True, slots=True)
class ScaledFiles:
    """This class holds the FP8 weights of a checkpoint, and their scales as stored.

    ``scales`` is by the name of the weight. ``unused`` are the tensors stored for quantised
    activations.
    """

    scales: Mapping[str, StoredTensor]
    weight_shapes: Mapping[str, tuple[int, ...]]
    unused: frozenset[str]

    def rest(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are no scales."""
        taken = {each.name for each in self.scales.values()} | self.unused
        return [name for name in names if name not in taken]


def find_scaled(where: str, stored: Mapping[str, StoredTensor], scheme: Fp8Scheme) -> ScaledFiles:
    """Return the FP8 weights among the ``stored`` tensors of the checkpoint ``where``.

    Raise ``ModelError`` for a weight without scales, with scales of another shape, or with scales
    and another type. Raise it too if there is no FP8 weight at all.
    """
    weights = {name for name, each in stored.items() if each.dtype == E4M3}
    if not weights:
        raise ModelError(
            f"MODEL {where}: config.json declares FP8 weights ({scheme.method}), but no tensor is "
            f"stored as {E4M3}. Take quantization_config out of it if they are plain"
        )
    scales = {name: _scale_of(where, name, stored) for name in sorted(weights)}
    for name, scale in scales.items():
        check_scale(where, stored[name], scale, scheme)
    for name, each in stored.items():
        owner = weight_of(name)
        is_plain = owner is not None and owner in stored and owner not in weights
        if owner is not None and is_plain and each.dtype in _SCALE_TYPES:
            raise ModelError(
                f"MODEL {where}: {owner} has scales ({name}), but is stored as "
                f"{stored[owner].dtype}: must be {E4M3}"
            )
    shapes = {name: stored[name].shape for name in scales}
    return ScaledFiles(scales, shapes, frozenset(n for n in stored if n.endswith(UNUSED)))


def weight_of(name: str) -> str | None:
    """Return the weight whose scales ``name`` would be, or None for other names."""
    if name.endswith(UNUSED):
        return None
    for ending in SCALE_ENDINGS:
        if name.endswith(ending):
            return name.removesuffix(ending)
    return None


def _scale_of(where: str, name: str, stored: Mapping[str, StoredTensor]) -> StoredTensor:
    for ending in SCALE_ENDINGS:
        if (found := stored.get(f"{name}{ending}")) is not None:
            if found.dtype not in _SCALE_TYPES:
                raise ModelError(
                    f"MODEL {where}: {found.name} is stored as {found.dtype}: scales must be F32, "
                    "BF16, F16 or F8_E8M0"
                )
            return found
    raise ModelError(f"MODEL {where}: {name} is FP8, and its scales ({name}_scale_inv) are missing")


def check_scale(where: str, weight: StoredTensor, scale: StoredTensor, scheme: Fp8Scheme) -> None:
    """Check that a weight is a matrix, and that its scales have the shape of the scheme.

    Raise ``ModelError`` with the tensor if not. Scales of a scheme with blocks have one number a
    block. Other scales have one a row, or one for the whole matrix.
    """
    block = scheme.block or (BLOCK, BLOCK)
    if len(weight.shape) < 2:
        raise ModelError(f"MODEL {where}: {weight.name} of {weight.shape} is FP8: must be a matrix")
    *experts, rows, columns = weight.shape
    grid = (*experts, -(-rows // block[0]), -(-columns // block[1]))
    channels, alone = (*experts, rows, 1), (*experts, 1, 1)
    right = [grid] if scheme.block else [channels, channels[:-1], alone, tuple(experts)]
    if not experts:
        right.append((1,))
    if tuple(scale.shape) not in right:
        needed = grid if scheme.block else channels
        raise ModelError(
            f"MODEL {where}: {scale.name} is of shape {scale.shape}: must be {needed} for "
            f"{weight.name} of {weight.shape}"
        )


def read_scale(path: Path, name: str, weight_shape: tuple[int, ...]) -> Tensor:
    """Return stored scales as ``[..., R, C]`` in float32, of a weight ``[..., N, K]``.

    Raise ``ModelError`` if one is not a finite number above zero.
    """
    scale = read_tensor(path, name).to(torch.float32)
    bad = scale[~(torch.isfinite(scale) & (scale > 0))]
    if bad.numel():
        raise ModelError(
            f"MODEL {path}: {name} holds {bad[0].item()}: scales must be above zero and finite"
        )
    return scale.reshape(normal_shape(tuple(scale.shape), weight_shape))


def check_codes(where: str, path: Path, name: str, weight: Tensor) -> None:
    """Check that every number of an FP8 ``weight`` is one.

    ``name`` is the tensor of the file ``path`` that it was read from. Raise ``ModelError`` if a
    code is NaN.
    """
    if has_nan_codes(weight):
        raise ModelError(
            f"{where}: {name} in {path.name} holds NaN (a code of 0x7f or 0xff). "
            "The file is damaged: download it again"
        )


def normal_shape(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of scales with as many dimensions as their weight has.

    Scales of channels or of a whole tensor are stored with fewer.
    """
    return (*scale, *[1] * (len(weight) - len(scale)))
