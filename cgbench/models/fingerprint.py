"""Compute a digest of a model, its fingerprint. Equal models have equal fingerprints."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.models.division.splits import Splits
from cgbench.models.heads.head import DraftHead
from cgbench.models.heads.head_wiring import CONFIG_FIELD
from cgbench.models.quantised.scaled_modules import WHOLE_SCALE
from cgbench.models.target import Target


@torch.no_grad()
def fingerprint(target: Target, head: DraftHead | None) -> str:
    """Return a digest of the config and of all weights of a target and its head.

    Equal models have equal fingerprints, however the ranks share them. All ranks call this.

    A tensor enters as the sums of its raw integers along rows and along columns, taken on the
    device. A changed weight changes the sums, and so does another order of rows or columns.
    """
    digest = hashlib.sha256(_config_text(target).encode())
    parts: list[tuple[nn.Module, Splits]] = [(target.model, target.splits)]
    if head is not None:
        parts.append((head, head.all_splits))
    for module, splits in parts:
        state = module.state_dict() | _token_map(module)
        for told, name in _in_order(state):
            part = state[name]
            tensor = splits[name].joined(part) if name in splits else part
            digest.update(f"{told} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            for sums in _sums(tensor):
                digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _token_map(module: nn.Module) -> dict[str, Tensor]:
    """Return a head's map of draft tokens, which no state dict holds, if it has one."""
    ids = getattr(module, "target_ids", None)
    return {} if ids is None else {"target_ids": ids}


def _in_order(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each tensor's name as every rank has it, and its name here.

    Scales of FP8 weights come last and sorted, because a module holds them in the order in which
    they were loaded and divided.
    """
    told = [(name.replace(WHOLE_SCALE, "_scale"), name) for name in names]
    scales = sorted(pair for pair in told if pair[0].endswith("_scale"))
    return [pair for pair in told if not pair[0].endswith("_scale")] + scales


def _sums(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of the raw integers over the rows and over the columns.

    They are taken a slice of rows at a time. The sums need eight bytes an element on the way, and
    all experts at once would not fit.
    """
    raw = tensor.contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()])
    matrix = raw.reshape(-1, raw.shape[-1] if raw.dim() else 1)
    slices = matrix.split(max(1, _MOST_ELEMENTS // max(1, matrix.shape[1])))
    over_rows = torch.stack([rows.sum(0, dtype=torch.long) for rows in slices]).sum(0)
    over_columns = torch.cat([rows.sum(1, dtype=torch.long) for rows in slices])
    return over_rows, over_columns


def _config_text(target: Target) -> str:
    """Return the config without where it was found and what wrote it."""
    config = target.model.config.to_dict()
    kept = {key: _ordered(config[key]) for key in sorted(config.keys() - _NOT_THE_MODEL)}
    return json.dumps(kept, default=str)


def _ordered(value: Any) -> Any:
    """Return ``value`` with the objects in it that hold objects alone in the order of their keys.

    Step's rotary settings are made from a set of layer types, in another order in every process.
    """
    if not isinstance(value, dict):
        return value
    ordered = {key: _ordered(each) for key, each in value.items()}
    if all(isinstance(each, dict) for each in value.values()):
        return dict(sorted(ordered.items(), key=lambda item: str(item[0])))
    return ordered


_NOT_THE_MODEL = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"),
    CONFIG_FIELD,
}

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements that are summed at once: half a gigabyte as eight-byte integers.
_MOST_ELEMENTS = 2**26
