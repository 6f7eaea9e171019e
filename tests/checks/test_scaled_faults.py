"""A kernel of FP8 weights that is wrong is not what the audit holds it to: each fault is found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Answer
from cgbench.kernels import linear as products
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.models.heads.families import MIMO
from tests.support.audited import make_tiny_subject
from tests.support.fp8 import make_fp8_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fp8_checkpoint(tmp_path_factory.mktemp("fp8"), "mimo", MIMO, seed=3)[0]


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
    ("change", "answer"),
    [
        (right, Answer.HOLDS),
        (of_the_next_block, Answer.WRONG),
        (transposed, Answer.WRONG),
        (twice, Answer.WRONG),
        (without, Answer.WRONG),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_kernel_is_judged_by_the_values(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tensor], Tensor],
    answer: Answer,
) -> None:
    def kernel(
        x: Tensor, weight: Tensor, bias: Any, scale: Any, row_blocks: Any, **end: Any
    ) -> Any:
        if scale is None or end:
            return None
        return scaled_linear(x, weight, bias, change(scale), row_blocks)

    monkeypatch.setattr(products, "_by_kernel", kernel)
    (check,) = [each for each in CHECKS if each.name == "hidden"]
    assert check.run(make_tiny_subject(folder)).answer is answer
