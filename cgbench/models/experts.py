"""Fit transformers' mixtures of experts to checkpoints and to memory.

transformers fuses the weights of experts, where checkpoints have each expert apart. Forwards take
no more tokens at once than memory allows.
"""

import functools
from typing import Any

import torch
from torch import Size, Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

TOKENS_A_CHUNK = 2048
"""One call of transformers' experts takes at most this many tokens.

The experts keep several rows for every expert of a token.
"""

# transformers' fused parameter -> the checkpoint's projections of each expert, in fusing order.
# Source: transformers' conversion mapping of qwen2_moe, which DeepSeek-V3, GLM-4 and Qwen3 share.
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def expert_parts(name: str, shape: Size) -> dict[str, Size] | None:
    """Return the per-expert tensors that make the fused ``name`` of ``shape [E, out, in]``.

    The result maps each tensor's name to its shape, in order. It is None if ``name`` is no fused
    expert weight.
    """
    prefix, _, leaf = name.rpartition(".")
    if not prefix.endswith(".experts") or leaf not in _PARTS:
        return None
    num_experts, rows, columns = shape
    parts = _PARTS[leaf]
    part_shape = Size((rows // len(parts), columns))
    return {
        f"{prefix}.{expert}.{part}.weight": part_shape
        for expert in range(num_experts)
        for part in parts
    }


def num_fused(name: str) -> int:
    """Return how many projections are stacked in the fused parameter ``name`` of experts.

    It is 1 for every other parameter.
    """
    prefix, _, leaf = name.rpartition(".")
    return len(_PARTS[leaf]) if prefix.endswith(".experts") and leaf in _PARTS else 1


def fuse(tensors: list[Tensor], shape: Size) -> Tensor:
    """Return ``tensors``, in the order of ``expert_parts``, as one tensor of ``shape [E, out,
    in]``."""
    return torch.cat(tensors).reshape(shape)


def implementation_for(device: torch.device, dtype: torch.dtype) -> str:
    """Return which of transformers' implementations applies experts.

    ``grouped_mm`` reads no tensor on the host and can be captured. On CUDA its kernel knows
    bfloat16 alone. ``batched_mm`` copies weights for each token, which only small models bear.
    """
    in_other_dtype = device.type == "cuda" and dtype != torch.bfloat16
    return "batched_mm" if in_other_dtype else "grouped_mm"


def take_over_loops(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Do ``dispatch_experts`` to the layers of ``model``.

    Its weights are of ``dtype`` on ``device``. They must not be FP8 yet.
    """
    config = model.config.get_text_config()
    if dispatch_experts(model.get_decoder(), config):
        config._experts_implementation = implementation_for(device, dtype)


def dispatch_experts(module: nn.Module, config: PretrainedConfig) -> bool:
    """Have the mixtures in ``module`` that transformers applies in a loop over experts be applied
    by the implementation that ``config`` names, in place. The loop reads tensors on the host.
    Returns whether there are any.
    """
    found = [part for part in module.modules() if type(part).__name__ in _LOOPED]
    for part in found:
        kind: Any = type(part)
        part.__class__ = _dispatched(kind)
        part.__dict__["config"] = config
    return bool(found)


# Mixtures stored as those of qwen2_moe are, that transformers' decorator of expert classes is not
# on, as of 5.23.
_LOOPED = frozenset({"Step3p7Experts"})


@functools.cache
def _dispatched(kind: Any) -> type[nn.Module]:
    class DispatchedExperts(kind):  # type: ignore[misc]
        """This class adds what transformers' decorator gives an expert class."""

        has_gate = is_concatenated = True
        has_bias = has_post_expert_norm = is_transposed = _is_expert_parallel = False

        def forward(self, *choice: Tensor) -> Any:
            """``choice``: hidden states, and the experts and weights of each token."""
            return ALL_EXPERTS_FUNCTIONS[self.config._experts_implementation](self, *choice)

    return DispatchedExperts


def apply_in_chunks(module: nn.Module) -> None:
    """Make the mixtures in ``module`` take long prompts in chunks of ``TOKENS_A_CHUNK``, in place.

    Each token has its own experts, so the sums stay what they are.
    """
    for part in list(module.modules()):
        # transformers' decorator of expert classes gives each of them this attribute.
        if hasattr(part, "is_transposed") and not hasattr(part, "takes_chunks"):
            kind: Any = type(part)
            part.__class__ = _chunked(kind)


@functools.cache
def _chunked(kind: Any) -> type[nn.Module]:
    class ChunkedExperts(kind):  # type: ignore[misc]
        takes_chunks = True

        def forward(self, hidden: Tensor, *choice: Tensor, **others: Any) -> Any:
            """Apply the experts. ``choice`` holds each token's experts and weights, in the model's
            order."""
            if torch.compiler.is_compiling() or others or len(hidden) <= TOKENS_A_CHUNK:
                return super().forward(hidden, *choice, **others)
            out = torch.empty_like(hidden)
            for first in range(0, len(hidden), TOKENS_A_CHUNK):
                part = slice(first, first + TOKENS_A_CHUNK)
                out[part] = super().forward(hidden[part], *(each[part] for each in choice))
            return out

    return ChunkedExperts
