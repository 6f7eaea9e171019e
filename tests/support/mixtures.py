"""Mixtures of transformers' models through the operators, with nothing compiled or traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import AutoConfig

from cgbench.compile import layers, mixtures, operators
from cgbench.compile.layers import Forward
from cgbench.kernels.moe.expert_products import Padding
from cgbench.models.support import auto_class_for
from tests.support.tiny import HYBRID_CONFIGS, MORE_CONFIGS, SHAPE, randomise

KINDS = (
    "qwen3_moe",
    "qwen3_next-hybrid",
    "qwen3_5_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "deepseek_v3",
    "ernie4_5_moe",
)
"""One of each form of router, with shared experts and without."""

WITH_SHARED = KINDS[1:]

_SHORT = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_TEXT = HYBRID_CONFIGS["qwen3_5_moe"].get_text_config().to_dict()
SHORT_HYBRIDS: dict[str, dict[str, Any]] = {
    "qwen3_next-hybrid": _SHORT,
    "qwen3_5_moe": {"text_config": _TEXT | _SHORT},
}
"""What makes these checkpoints two layers, one of each sort."""


_GPT_OSS = AutoConfig.for_model(
    "gpt_oss", **(SHAPE | {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16})
)
_CONFIGS = {**MORE_CONFIGS, **HYBRID_CONFIGS, "gpt_oss": _GPT_OSS}


def make_block(kind: str, *, seed: int = 0, **shape: Any) -> nn.Module:
    """A mixture of a tiny model, its router and its shared experts included."""
    torch.manual_seed(seed)
    base = _CONFIGS[kind].get_text_config()
    config = type(base).from_dict(base.to_dict() | shape)
    model = auto_class_for(config).from_config(config, dtype=torch.float32)
    randomise(model, 0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            buffer.normal_(std=0.1)
    block = next(each for each in model.modules() if hasattr(each, "experts"))
    assert isinstance(block, nn.Module)
    return block.eval().requires_grad_(False)


@contextmanager
def as_operators(padding: Padding | None = None) -> Iterator[None]:
    """Modules that are operators where they are compiled are so here. ``padding`` is that of the
    call that is under way."""
    call: Any = SimpleNamespace(padding=padding)
    with mock.patch.object(torch.compiler, "is_compiling", lambda: True), operators.under_way(call):
        yield


def _run_as_compiled(function: Forward) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(torch.compiler, "is_compiling", lambda: True):
            return function(*args, **kwargs)

    return forward


@contextmanager
def operators_alone() -> Iterator[None]:
    """What ``compile_forwards`` would compile runs as it is written, operators and all."""
    with mock.patch.object(layers, "_compiled", _run_as_compiled):
        yield


@contextmanager
def interpreted_kernels() -> Iterator[None]:
    """Mixtures run their kernels on a CPU: for processes in which Triton interprets."""
    with mock.patch.object(mixtures, "runs_kernels", lambda _: True):
        yield
