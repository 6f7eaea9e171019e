"""Every preset's bytes, worked out a second time from the public models' own numbers.

Nothing of the package computes here. A layer is a list of matrices, ``(rows, columns)``, written
from the model's card. The floor reads them off the modules instead, so that the two agree only if
both have the same layers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cgbench.floor.least_time import Batch, Floor
from cgbench.floor.rates import DeviceLimits
from cgbench.floor.work import model_work
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.presets import PRESETS

BYTES = 2
MOST_LAYERS = 8
"""More layers add none of another kind, but where a preset has few and each is different."""

Matrix = tuple[int, int]


@dataclass(frozen=True)
class Mixer:
    """Attention, or a gated delta net, whose ``plain`` matrices no FP8 checkpoint converts."""

    matrices: tuple[Matrix, ...]
    kv_values: int = 0
    window: int | None = None
    plain: tuple[Matrix, ...] = ()
    state_bytes: int = 0
    convolution: int = 0


@dataclass(frozen=True)
class Ffn:
    """A dense layer, or ``num_experts`` of which a token takes ``top_k``, with what all take."""

    matrices: tuple[Matrix, ...]
    num_experts: int = 0
    top_k: int = 0
    expert: tuple[Matrix, ...] = ()
    plain: tuple[Matrix, ...] = ()
    router: int = 0
    """Its elements."""


Layer = tuple[Mixer, Ffn]


@dataclass(frozen=True)
class Types:
    """Whether layers are FP8, and the bytes of a router's element."""

    is_fp8: bool = False
    router: int = BYTES


@dataclass(frozen=True)
class Model:
    hidden: int
    vocab: int
    layers: Sequence[Layer]
    block: Layer
    """Of the head, in each of its modules."""
    tied: bool = False
    num_modules: int = 1
    own_outputs: bool = False


def swiglu(hidden: int, inner: int) -> tuple[Matrix, ...]:
    return ((inner, hidden), (inner, hidden), (hidden, inner))


def dense(hidden: int, inner: int) -> Ffn:
    return Ffn(swiglu(hidden, inner))


def mixture(
    hidden: int, inner: int, num: int, top_k: int, shared: int = 0, *, shared_gate: bool = False
) -> Ffn:
    matrices = swiglu(hidden, shared) if shared else ()
    plain = ((1, hidden),) if shared_gate else ()
    return Ffn(matrices, num, top_k, swiglu(hidden, inner), plain, num * hidden)


def grouped(
    hidden: int,
    heads: int,
    kv_heads: int,
    key: int,
    value: int | None = None,
    *,
    window: int | None = None,
    gated: bool = False,
    head_gate: bool = False,
) -> Mixer:
    value = value or key
    matrices = [
        (heads * key * (2 if gated else 1), hidden),
        (kv_heads * key, hidden),
        (kv_heads * value, hidden),
        (hidden, heads * value),
        *([(heads, hidden)] if head_gate else []),
    ]
    return Mixer(tuple(matrices), kv_heads * (key + value), window)


def latent(
    hidden: int, heads: int, query_rank: int, rank: int, nope: int, rope: int, value: int
) -> Mixer:
    """``(rank, heads)`` holds W_UK and W_UV. A token keeps one latent and one rotary key."""
    matrices = (
        (query_rank, hidden),
        (heads * (nope + rope), query_rank),
        (rank + rope, hidden),
        (heads * (nope + value), rank),
        (hidden, heads * value),
    )
    return Mixer(matrices, rank + rope)


def delta_net(hidden: int, key_heads: int, value_heads: int, size: int = 128) -> Mixer:
    """A float32 matrix a value head, and three rows of a convolution of four taps."""
    channels = (2 * key_heads + value_heads) * size
    return Mixer(
        ((channels, hidden), (value_heads * size, hidden), (hidden, value_heads * size)),
        plain=((value_heads, hidden), (value_heads, hidden)),
        state_bytes=value_heads * size * size * 4 + 3 * channels * BYTES,
        convolution=4 * channels,
    )


def every_fourth(attention: Mixer, other: Mixer, ffn: Ffn, num_layers: int) -> list[Layer]:
    return [(other if (n + 1) % 4 else attention, ffn) for n in range(num_layers)]


def alike(mixer: Mixer, ffn: Ffn, num_layers: int) -> list[Layer]:
    return [(mixer, ffn)] * num_layers


def plain(hidden: int, inner: int, num_layers: int, attention: Mixer, vocab: int) -> Model:
    layers = alike(attention, dense(hidden, inner), num_layers)
    return Model(hidden, vocab, layers, layers[0])


QWEN3_VOCAB = 151936
GEMMA, GEMMA_FFN = grouped(1152, 4, 1, 256), dense(1152, 6912)
QWEN3_MIXTURE = (grouped(2048, 32, 4, 128), mixture(2048, 768, 128, 8))
ERNIE, ERNIE_DENSE = grouped(2560, 20, 4, 128), dense(2560, 12288)
DEEPSEEK = latent(7168, 128, 1536, 512, 128, 64, 128)
DEEPSEEK_MIXTURE = (DEEPSEEK, mixture(7168, 2048, 256, 8, 2048))
GLM_FLASH = latent(2048, 20, 768, 512, 192, 64, 256)
GLM_FLASH_MIXTURE = (GLM_FLASH, mixture(2048, 1536, 64, 4, 1536))
GLM_AIR = grouped(4096, 96, 8, 128)
GLM_AIR_MIXTURE = (GLM_AIR, mixture(4096, 1408, 128, 8, 1408))
MIMO_FULL = grouped(4096, 64, 4, 192, 128)
# 128 tokens before a query, and its own.
MIMO_SLIDING = grouped(4096, 64, 8, 192, 128, window=129)
MIMO_DENSE, MIMO_MIXTURE = dense(4096, 16384), mixture(4096, 2048, 256, 8)
STEP_FULL = grouped(4096, 64, 8, 128, head_gate=True)
STEP_SLIDING = grouped(4096, 96, 8, 128, window=512, head_gate=True)
STEP_DENSE, STEP_MIXTURE = dense(4096, 11264), mixture(4096, 1280, 288, 8, 1280)
QWEN35_SMALL = (grouped(1024, 8, 2, 256, gated=True), dense(1024, 3584))
QWEN35 = (
    grouped(2048, 16, 2, 256, gated=True),
    mixture(2048, 512, 256, 8, 512, shared_gate=True),
)
QWEN_NEXT = (
    grouped(2048, 16, 2, 256, gated=True),
    mixture(2048, 512, 512, 10, 512, shared_gate=True),
)

MODELS = {
    "mimo-7b": plain(4096, 11008, 36, grouped(4096, 32, 8, 128), 151680),
    "qwen3-0.6b": replace(plain(1024, 3072, 28, grouped(1024, 16, 8, 128), QWEN3_VOCAB), tied=True),
    "qwen3-8b": plain(4096, 12288, 36, grouped(4096, 32, 8, 128), QWEN3_VOCAB),
    "qwen3-32b": plain(5120, 25600, 64, grouped(5120, 64, 8, 128), QWEN3_VOCAB),
    "llama-3.1-8b": plain(4096, 14336, 32, grouped(4096, 32, 8, 128), 128256),
    "gemma-3-1b": Model(
        1152,
        262144,
        [(replace(GEMMA, window=512 if (n + 1) % 6 else None), GEMMA_FFN) for n in range(26)],
        (GEMMA, GEMMA_FFN),
        tied=True,
    ),
    "qwen3-30b-a3b": Model(2048, QWEN3_VOCAB, alike(*QWEN3_MIXTURE, 48), QWEN3_MIXTURE),
    "ernie-4.5-21b-a3b": Model(
        2560,
        103424,
        [(ERNIE, ERNIE_DENSE), *alike(ERNIE, mixture(2560, 1536, 64, 6, 2 * 1536), 27)],
        (ERNIE, ERNIE_DENSE),
        tied=True,
    ),
    "deepseek-v3-6l": Model(
        7168,
        129280,
        [*alike(DEEPSEEK, dense(7168, 18432), 3), *alike(*DEEPSEEK_MIXTURE, 3)],
        DEEPSEEK_MIXTURE,
    ),
    "glm-4.7-flash": Model(
        2048,
        154880,
        [(GLM_FLASH, dense(2048, 10240)), *alike(*GLM_FLASH_MIXTURE, 46)],
        GLM_FLASH_MIXTURE,
    ),
    "mimo-v2-flash-9l": Model(
        4096,
        152576,
        [
            (MIMO_FULL if n in (0, 5) else MIMO_SLIDING, MIMO_MIXTURE if n else MIMO_DENSE)
            for n in range(9)
        ],
        (MIMO_SLIDING, MIMO_DENSE),
        num_modules=3,
    ),
    "step-3.5-flash-14l": Model(
        4096,
        128896,
        [
            (STEP_SLIDING if n % 4 else STEP_FULL, STEP_DENSE if n < 3 else STEP_MIXTURE)
            for n in range(14)
        ],
        (STEP_SLIDING, STEP_DENSE),
        num_modules=3,
        own_outputs=True,
    ),
    "qwen3.5-0.8b": Model(
        1024,
        248320,
        every_fourth(QWEN35_SMALL[0], delta_net(1024, 16, 16), QWEN35_SMALL[1], 24),
        QWEN35_SMALL,
        tied=True,
    ),
    "qwen3.5-35b-a3b": Model(
        2048,
        248320,
        every_fourth(QWEN35[0], delta_net(2048, 16, 32), QWEN35[1], 40),
        QWEN35,
    ),
    "qwen3-next-80b-a3b": Model(
        2048,
        QWEN3_VOCAB,
        every_fourth(QWEN_NEXT[0], delta_net(2048, 16, 32), QWEN_NEXT[1], 48),
        QWEN_NEXT,
    ),
    "glm-4.5-air": Model(
        4096,
        151552,
        [(GLM_AIR, dense(4096, 10944)), *alike(*GLM_AIR_MIXTURE, 45)],
        GLM_AIR_MIXTURE,
    ),
}

BILLIONS = {
    "mimo-7b": 7.62,
    "qwen3-0.6b": 0.596,
    "qwen3-8b": 8.19,
    "qwen3-32b": 32.76,
    "llama-3.1-8b": 8.03,
    "gemma-3-1b": 1.00,
    "qwen3-30b-a3b": 30.53,
    "ernie-4.5-21b-a3b": 21.83,
    "glm-4.7-flash": 29.94,
    "qwen3.5-0.8b": 0.752,
    "qwen3.5-35b-a3b": 34.66,
    "qwen3-next-80b-a3b": 79.67,
    "glm-4.5-air": 106.85,
}
"""Parameters without the head, of the presets that have every layer of their public model."""


def num_bytes(matrices: Sequence[Matrix], is_fp8: bool) -> int:
    """A byte an element and a scale of four bytes a block of 128 x 128, or two bytes."""
    if not is_fp8:
        return sum(BYTES * rows * columns for rows, columns in matrices)
    return sum(
        rows * columns + 4 * ceil(rows / 128) * ceil(columns / 128) for rows, columns in matrices
    )


def dense_bytes(layer: Layer, types: Types) -> int:
    mixer, ffn = layer
    converted = num_bytes((*mixer.matrices, *ffn.matrices), types.is_fp8)
    plain = num_bytes((*mixer.plain, *ffn.plain), False)
    return converted + plain + types.router * ffn.router


def held(layer: Layer, types: Types) -> int:
    """All that the layer holds, every expert and the convolution included."""
    mixer, ffn = layer
    experts = ffn.num_experts * num_bytes(ffn.expert, types.is_fp8)
    return dense_bytes(layer, types) + experts + BYTES * mixer.convolution


def read(layer: Layer, num_tokens: int, types: Types) -> float:
    """What a forward of so many tokens reads, each of which draws its experts evenly."""
    _, ffn = layer
    if not ffn.num_experts:
        return dense_bytes(layer, types)
    missed = (1 - ffn.top_k / ffn.num_experts) ** num_tokens
    experts = ffn.num_experts * (1 - missed) * num_bytes(ffn.expert, types.is_fp8)
    return dense_bytes(layer, types) + experts


def kv_read(mixer: Mixer, keys: int, rows: int) -> int:
    """``rows`` queries side by side, the last of which sees ``keys`` or its window."""
    seen = keys if mixer.window is None else min(keys, mixer.window + rows - 1)
    return BYTES * mixer.kv_values * seen


def iteration(model: Model, batch: int, k: int, context: int, types: Types) -> dict[str, float]:
    """The bytes that an iteration reads: weights, keys and values, state, embedding rows."""
    output = BYTES * model.hidden * model.vocab
    projection = BYTES * 2 * model.hidden * model.hidden
    verified = batch * (k + 1)
    weights = output + sum(read(layer, verified, types) for layer in model.layers)
    kv = sum(batch * kv_read(mixer, context + k + 1, k + 1) for mixer, _ in model.layers)
    state, tokens = sum(batch * mixer.state_bytes for mixer, _ in model.layers), verified
    for step in range(1, k + 1):
        # A module past the first also reads the rows that it had of drafts alone.
        rows = k + step if step <= model.num_modules else 1
        keys = (
            context + k + 1 if step <= model.num_modules else context + step - model.num_modules + 1
        )
        weights += projection + read(model.block, batch * rows, types) + output
        kv += batch * kv_read(model.block[0], keys, rows)
        tokens += batch * rows
    embeddings = tokens * BYTES * model.hidden
    return {"weights": weights, "kv": kv, "state": state, "embedding rows": embeddings}


def by_kind(floor: Floor, batch: Batch) -> dict[str, float]:
    found = dict.fromkeys(("weights", "kv", "state", "embedding rows"), 0.0)
    kinds = {"recurrent state": "state", "embedding rows": "embedding rows"}
    for line in floor.account(batch):
        is_kv = line.what.startswith(("attention", "latent attention"))
        found["kv" if is_kv else kinds.get(line.what, "weights")] += line.num_bytes
    return found


def shortened(name: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The preset and ``model`` with their first layers alone, where many are alike."""
    preset = PRESETS[name]
    if len(model.layers) <= 14:
        return model
    config: dict[str, Any] = {**preset.config, "num_hidden_layers": MOST_LAYERS}
    if "moe_layer_end_index" in config:
        config["moe_layer_end_index"] = MOST_LAYERS - 1
    monkeypatch.setitem(PRESETS, name, replace(preset, config=config))
    return replace(model, layers=model.layers[:MOST_LAYERS])


def router_itemsize(model: PreTrainedModel) -> int:
    """As transformers holds it, which differs between its releases. ERNIE's is float32 in all."""
    kept = model._get_dtype_plan(torch.bfloat16)
    router = "model.layers.7.mlp.gate.weight"
    return 4 if any(re.search(each.replace("*", ".*"), router) for each in kept) else BYTES


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_what_its_public_model_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, is_fp8 = MODELS[name.removesuffix("-fp8")], name.endswith("-fp8")
    assert PRESETS[name].config["num_hidden_layers"] == len(whole.layers)
    model = shortened(name, whole, monkeypatch)
    where = (torch.device("cpu"), torch.bfloat16)
    plan = plan_loading(Loading(f"preset:{name}", None, True, *where))
    skeleton = plan.skeleton
    types = Types(is_fp8, router_itemsize(skeleton.target.model))

    matrices = BYTES * model.hidden * model.vocab
    target = sum(held(layer, types) for layer in model.layers) + matrices * (2 - model.tied)
    assert not name.startswith("ernie") or types.router == 4
    # Norms and biases are the rest.
    assert skeleton.weight_bytes(torch.bfloat16) == pytest.approx(target, rel=1e-3)
    module = 4 * model.hidden**2 + held(model.block, types) + matrices * model.own_outputs
    head = model.num_modules * module
    assert skeleton.head_bytes(torch.bfloat16) == pytest.approx(head, rel=1e-3)
    kv = sum(mixer.kv_values for mixer, _ in model.layers)
    kv += model.num_modules * model.block[0].kv_values
    assert skeleton.kv_bytes_per_token(torch.bfloat16) == BYTES * kv
    state = sum(mixer.state_bytes for mixer, _ in model.layers)
    assert skeleton.state_bytes(torch.bfloat16) == state

    floor = Floor(model_work(skeleton, plan.kv_format), DeviceLimits(1.0, 1e30), BYTES)
    for batch in (1, 8, 64):
        for k, context in ((0, 1024), (1, 8192), (3, 1024), (5, 8192)):
            expected = iteration(model, batch, k, context, types)
            found = by_kind(floor, Batch(batch, k, context))
            assert found == pytest.approx(expected, rel=1e-9), (batch, k, context)


@pytest.mark.parametrize("name", BILLIONS)
def test_the_numbers_by_hand_make_a_model_of_its_public_size(name: str) -> None:
    model = MODELS[name]
    matrices = model.hidden * model.vocab * (2 - model.tied)
    total = sum(held(layer, Types()) for layer in model.layers) / BYTES + matrices
    assert total / 1e9 == pytest.approx(BILLIONS[name], rel=1.5e-3)


def test_every_preset_is_worked_out() -> None:
    assert MODELS.keys() == {name.removesuffix("-fp8") for name in PRESETS}
