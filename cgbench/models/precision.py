"""Count the bytes of each part of a model, by the type that its weights are stored in."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Size, nn

from cgbench.models.kept_types import kept_in_float32
from cgbench.models.skeleton import Skeleton, plain_bytes, stored_bytes

FP8_NAME = "float8_e4m3fn"

# A parameter belongs to the first part whose pattern is found in its name.
_REST = "norms, routers and the rest"
_PARTS = (
    (_REST, r"norm"),
    ("experts", r"\.experts\."),
    ("attention", r"(self_attn|linear_attn|attention)\."),
    ("dense and shared experts", r"(mlp|shared_expert|feed_forward|block_sparse_moe).*_proj"),
    ("embedding", r"embed"),
    ("lm_head", r"lm_head|^(later\.\d+\.)?output\."),
    ("MTP projection", r"^(later\.\d+\.)?proj\."),
)


@dataclass(frozen=True, slots=True)
class PartPrecision:
    """This class counts the weights of one part of a model that have one type.

    Their scales are included. ``part`` begins with ``head`` for parts of the draft head.
    """

    part: str
    dtype: str
    num_bytes: int


def precision_by_part(skeleton: Skeleton, dtype: torch.dtype) -> tuple[PartPrecision, ...]:
    """Return the bytes of each of the target's parts and types, then of the head's.

    Tied weights count once.
    """
    keeps = kept_in_float32(skeleton.target.model, dtype)
    target = _by_part(skeleton.target.model, skeleton.scaled, dtype, keeps)
    head = {}
    if skeleton.head is not None:
        head = _by_part(skeleton.head, skeleton.head_scaled, dtype, keeps)
    parts = [(part, kind, size) for (part, kind), size in target.items()]
    parts += [(f"head {part}", kind, size) for (part, kind), size in head.items()]
    return tuple(PartPrecision(*each) for each in parts)


def _by_part(
    module: nn.Module,
    scaled: Mapping[str, Size],
    dtype: torch.dtype,
    keeps: Callable[[str], bool],
) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    state = module.state_dict(keep_vars=True)
    # A tied weight has two names, of which the first is kept.
    for name in {id(each): name for name, each in reversed(state.items())}.values():
        shape = state[name].shape
        if name in scaled:
            kind, size = FP8_NAME, stored_bytes(shape, scaled[name])
        else:
            plain = torch.float32 if keeps(name) else dtype
            kind = str(plain).removeprefix("torch.")
            size = plain_bytes(name, shape, dtype, keeps)
        key = part_of(name), kind
        found[key] = found.get(key, 0) + size
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def part_of(name: str) -> str:
    """Return the part of a model that the parameter ``name`` belongs to."""
    return next((part for part, pattern in _PARTS if re.search(pattern, name)), _REST)
