"""A kernel of FP8 weights that is wrong is not what the audit holds it to: each fault is found, in
either numeric mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Answer, Finding
from cgbench.kernels import linear as products
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.kernels.fp8.token_values import QuantisedTokens, quantised_tokens
from cgbench.models.heads.families import MIMO
from cgbench.request.choices import QuantMode
from tests.support.audited import (
    FEW_SIZES,
    loaded,
    make_tiny_subject,
    run_checks,
    run_reference_checks,
)
from tests.support.fp8 import BLOCK, make_fp8_checkpoint

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fp8_checkpoint(tmp_path_factory.mktemp("fp8"), "mimo", MIMO, seed=3)[0]


def hidden(folder: Path, quant: QuantMode) -> Finding:
    (check,) = [each for each in CHECKS if each.name == "hidden"]
    model = loaded(folder, quant=quant)
    return check.run(make_tiny_subject(folder, spec_tokens=(3,), quant=quant, model=model))


def right(scale: Tensor) -> Tensor:
    return scale


def of_the_next_block(scale: Tensor) -> Tensor:
    return scale.roll(1, dims=1)


def transposed(scale: Tensor) -> Tensor:
    return scale.T.reshape(scale.shape)


def twice(scale: Tensor) -> Tensor:
    return scale * scale


def without(scale: Tensor) -> Tensor:
    return scale.mean().expand(scale.shape)


@pytest.mark.parametrize(
    ("change", "answer", "quant"),
    [
        (right, Answer.HOLDS, QuantMode.W8A16),
        (right, Answer.HOLDS, QuantMode.W8A8),
        (of_the_next_block, Answer.WRONG, QuantMode.W8A16),
        (transposed, Answer.WRONG, QuantMode.W8A8),
        (twice, Answer.WRONG, QuantMode.W8A16),
        (without, Answer.WRONG, QuantMode.W8A8),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_kernel_is_judged_by_the_values(
    folder: Path,
    monkeypatch: Patch,
    change: Callable[[Tensor], Tensor],
    answer: Answer,
    quant: QuantMode,
) -> None:
    def kernel(
        x: Tensor, weight: Tensor, bias: Any, scale: Any, row_blocks: Any, is_w8a8: bool, **end: Any
    ) -> Any:
        if scale is None or end:
            return None
        assert is_w8a8 == (quant is QuantMode.W8A8)
        return scaled_linear(x, weight, bias, change(scale), row_blocks, is_w8a8)

    monkeypatch.setattr(products, "_by_kernel", kernel)
    assert hidden(folder, quant).answer is answer


Multiply = Callable[[QuantisedTokens, Tensor, Tensor, Tensor], Tensor]
"""The product of quantised rows and a weight, from its scales and their rows."""


def promoted(rows: QuantisedTokens, weight: Tensor, scale: Tensor, row_blocks: Tensor) -> Tensor:
    """As the kernel: the sum of each block times both its scales, added in float32."""
    total = torch.zeros(*rows.stored.shape[:-1], weight.shape[0])
    for block, k in enumerate(range(0, weight.shape[1], BLOCK)):
        part = F.linear(rows.stored[..., k : k + BLOCK].float(), weight[:, k : k + BLOCK].float())
        total += part * rows.scales[..., block, None] * scale[row_blocks, block]
    return total


def missing_promotion(rows: QuantisedTokens, weight: Tensor, *scales: Tensor) -> Tensor:
    """All columns in one sum, which is scaled at its end."""
    scale, row_blocks = scales
    total = F.linear(rows.stored.float(), weight.float())
    return total * rows.scales[..., -1, None] * scale[row_blocks, -1]


def promotion_of_the_last_sum(rows: QuantisedTokens, weight: Tensor, *scales: Tensor) -> Tensor:
    """A block's sum is not cleared as it is promoted: the next one holds it too."""
    whole = torch.zeros(*rows.stored.shape[:-1], weight.shape[0])
    for columns in range(BLOCK, weight.shape[1] + BLOCK, BLOCK):
        stored = rows.stored.float().clone()
        stored[..., columns:] = 0
        part = QuantisedTokens(stored, rows.scales)
        whole += promoted(part, weight, *scales)
    return whole


def scale_of_the_next_token(rows: QuantisedTokens, *weight: Tensor) -> Tensor:
    rolled = rows.scales.flatten(0, -2).roll(1, 0).view_as(rows.scales)
    return promoted(rows._replace(scales=rolled), *weight)


def scale_of_the_tokens_next_block(rows: QuantisedTokens, *weight: Tensor) -> Tensor:
    return promoted(rows._replace(scales=rows.scales.roll(1, -1)), *weight)


def token_scale_twice(rows: QuantisedTokens, *weight: Tensor) -> Tensor:
    return promoted(rows._replace(scales=rows.scales**2), *weight)


def tokens_of_four_bits(rows: QuantisedTokens, *weight: Tensor) -> Tensor:
    """One bit of each number is lost on its way."""
    cut = (rows.stored.view(torch.uint8) & 0xFE).view(rows.stored.dtype)
    return promoted(rows._replace(stored=cut), *weight)


def unquantised_tokens(rows: QuantisedTokens, *weight: Tensor) -> Tensor:
    """What ``plant`` makes of it: the product of the other mode."""
    raise AssertionError


FAULTS = (
    missing_promotion,
    promotion_of_the_last_sum,
    scale_of_the_next_token,
    scale_of_the_tokens_next_block,
    token_scale_twice,
    tokens_of_four_bits,
    unquantised_tokens,
)


def plant(patch: Patch, multiply: Multiply) -> None:
    """Have ``multiply`` make every product of quantised rows that has no end."""

    def kernel(
        x: Tensor, weight: Tensor, bias: Any, scale: Any, row_blocks: Any, is_w8a8: bool, **end: Any
    ) -> Any:
        if scale is None or end:
            return None
        if multiply is unquantised_tokens:
            return scaled_linear(x, weight, bias, scale, row_blocks)
        rows = quantised_tokens(x, scale.shape[1])
        out = multiply(rows, weight, scale, row_blocks)
        return (out if bias is None else out + bias).to(x.dtype)

    patch.setattr(products, "_by_kernel", kernel)


@pytest.mark.parametrize("multiply", FAULTS, ids=lambda each: each.__name__)
def test_a_fault_of_quantised_products_is_found(
    folder: Path, monkeypatch: Patch, multiply: Multiply
) -> None:
    plant(monkeypatch, multiply)
    assert hidden(folder, QuantMode.W8A8).answer is Answer.WRONG


def test_a_sound_kernel_of_quantised_products_passes(folder: Path, monkeypatch: Patch) -> None:
    """Its sums are in another order than the definition's."""
    plant(monkeypatch, promoted)
    finding = hidden(folder, QuantMode.W8A8)
    assert finding.answer is Answer.HOLDS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sound_engine_passes(folder: Path, dtype: torch.dtype) -> None:
    how: dict[str, Any] = {"with_graphs": True, "quant": QuantMode.W8A8, "batch_sizes": FEW_SIZES}
    subject = make_tiny_subject(folder, spec_tokens=(3,), dtype=dtype, **how)
    assert subject.is_w8a8 and not subject.is_exact
    is_plain = dtype == torch.float32
    findings = run_checks(subject) if is_plain else run_reference_checks(subject)
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]
    assert {finding.answer for finding in findings} >= {Answer.HOLDS}
