"""Tell which tensors of a model of half precision stay in float32.

transformers names them by model type, and the names change between its releases. A router's weight
and its correction are such. Rounded they would choose other experts.
"""

import re
from collections.abc import Callable

import torch
from transformers import PreTrainedModel


def kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], bool]:
    """Return whether the tensor of a name stays in float32 if ``model`` is held in ``dtype``.

    It also holds for the names of a draft head's tensors, whose modules are the target's.
    """
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if not plan:
        return lambda name: False
    pattern = re.compile("|".join(each.replace("*", ".*") for each in plan))
    return lambda name: pattern.search(name) is not None


def keep_types(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the tensors that stay in float32, in place, of a ``model`` made all in ``dtype``."""
    keeps = kept_in_float32(model, dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.dtype == dtype and keeps(name):
            tensor.data = tensor.data.to(torch.float32)
