"""Compiled layers of FP8 weights: the same tokens, and the same ends taken into products."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.compile.operators import GATED_LINEAR, LINEAR_ADD, ROTATED_LINEAR, linear
from cgbench.kernels.fp8.block_scales import quantised, row_blocks_of
from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN, HeadFamily
from cgbench.models.router_rules import OWN_PATH, mixture_paths
from cgbench.request.choices import QuantMode
from tests.support.compiled import BATCH_SIZES, compiled, decoded
from tests.support.fp8 import make_fp8_checkpoint
from tests.support.tiny import load_tiny, make_speculator
from tests.support.tracing import traced_layers

SEVERAL, ALONE = (5, 3), (1,)
"""Forms for more requests than one, of which one is enough for all, and for one."""
MIXTURE = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "mimo": {"intermediate_size": 44},
    "glm4_moe": MIXTURE,
    "deepseek_v3": MIXTURE,
}
"""MiMo has the dense layers, whose products do not fill their last block."""


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    with traced_layers():
        yield


def test_tokens_are_those_of_the_dequantised_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cgbench.compile import fusion

    put_in = []
    replace = fusion._replace

    def noted(node, operator, inputs):  # type: ignore[no-untyped-def]
        put_in.append((operator, len(inputs)))
        replace(node, operator, inputs)

    monkeypatch.setattr(fusion, "_replace", noted)
    folder, plain = make_fp8_checkpoint(tmp_path, "mimo", MIMO, **SHAPES["mimo"])
    expected = make_speculator(load_tiny(plain), max_batch_size=max(BATCH_SIZES), room=64)
    _, spec = compiled(folder)
    for batch_size in BATCH_SIZES:
        assert decoded(spec, 2, batch_size) == decoded(expected, 2, batch_size)
    # With scales, row blocks and the numeric mode, three inputs more than of plain weights.
    assert {(GATED_LINEAR, 6), (LINEAR_ADD, 7), (ROTATED_LINEAR, 9)} <= set(put_in)


@pytest.mark.parametrize(("kind", "family"), [("mimo", MIMO), ("glm4_moe", DEEPSEEK)])
def test_quantised_activations_give_the_same_tokens(
    tmp_path: Path, kind: str, family: HeadFamily
) -> None:
    folder, _ = make_fp8_checkpoint(tmp_path, kind, family, **SHAPES[kind])
    model = load_tiny(folder, quant=QuantMode.W8A8)
    expected = make_speculator(model, max_batch_size=max(BATCH_SIZES), room=64)
    _, spec = compiled(folder, quant=QuantMode.W8A8)
    for batch_size in SEVERAL:
        assert decoded(spec, 1, batch_size) == decoded(expected, 1, batch_size)


@pytest.mark.parametrize(
    ("kind", "family", "path", "batch_sizes"),
    [
        ("glm4_moe", DEEPSEEK, OWN_PATH, ALONE),
        ("deepseek_v3", DEEPSEEK, OWN_PATH, SEVERAL),
        # Its shared expert's gate is FP8 here, which no public checkpoint's is.
        ("qwen3_next", QWEN, "products", SEVERAL),
    ],
)
def test_mixtures_with_shared_experts_decode_alike(
    tmp_path: Path, kind: str, family: HeadFamily, path: str, batch_sizes: tuple[int, ...]
) -> None:
    folder, plain = make_fp8_checkpoint(tmp_path, kind, family, **SHAPES.get(kind, {}))
    expected = make_speculator(load_tiny(plain), max_batch_size=max(BATCH_SIZES), room=64)
    model, spec = compiled(folder)
    paths = mixture_paths(model.target, model.head)
    assert paths == (OWN_PATH, OWN_PATH, path)
    for batch_size in batch_sizes:
        assert decoded(spec, 1, batch_size) == decoded(expected, 1, batch_size)


def test_the_operator_of_a_product_takes_scales() -> None:
    weight, scale = quantised(torch.randn(20, 24), block=16)
    scales = scale, row_blocks_of(20, 2)
    args = torch.randn(3, 24), weight, torch.randn(20), *scales
    torch.library.opcheck(linear, args, test_utils="test_faketensor")
    torch.library.opcheck(linear, (*args, True), test_utils="test_faketensor")
