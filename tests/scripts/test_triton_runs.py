"""Products in equal runs of tiles against float64: interpreted here, compiled on a GPU."""

from functools import partial

import pytest
import torch

from persistent_layer.triton_runs import linear_in_runs
from tests.support.interpreter import check_interpreted
from tests.support.product_ends import drawn, ends_of, largest_error

CASES = [
    # rows, outputs, inputs, bias
    (1, 64, 128, False),
    (4, 128, 512, True),
    (17, 320, 256, True),
    (32, 192, 384, False),
]
DEVICE_CASES = [
    *((4, 6144, 4096, True), (4, 4096, 4096, False)),
    *((32, 22016, 4096, False), (3, 4096, 11008, False)),
]


def relative_error(case: tuple[int, int, int, bool], device: str, dtype: torch.dtype) -> float:
    """The worst over several numbers of programs, which cut tiles between them or do not."""
    x, weight, bias, expected = drawn(case, device, dtype)
    errors = []
    for programs in (1, 3, 7) if device == "cpu" else (132, 264):
        product = partial(
            linear_in_runs,
            *(x, weight, bias),
            programs=programs,
            block_k=64 if device == "cpu" else 128,
        )
        errors.append(largest_error(ends_of(product, expected)))
    return max(errors)


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
def test_on_the_device(case: tuple[int, int, int, bool]) -> None:
    assert relative_error(case, "cuda", torch.bfloat16) < 4e-3


@pytest.mark.gpu
def test_parts_are_added_in_one_order() -> None:
    x, weight, _, _ = drawn((4, 4096, 4096, False), "cuda", torch.bfloat16)
    first = linear_in_runs(x, weight, None, programs=132)
    assert all(torch.equal(linear_in_runs(x, weight, None, programs=132), first) for _ in range(50))
