"""The streamed linear layer against torch's: in Triton's interpreter here, compiled on a GPU."""

from functools import partial

import pytest
import torch

from tests.support.interpreter import check_interpreted
from tests.support.product_ends import drawn, ends_of, largest_error

pytest.importorskip("triton")

CASES = [
    # rows, outputs, inputs, bias
    (1, 64, 128, False),
    (4, 128, 512, True),
    (5, 100, 208, True),
    (16, 48, 336, False),
    (17, 64, 256, True),
    (32, 40, 96, False),
    (33, 48, 144, True),
    (64, 40, 96, False),
]
# Sizes of a 7B model's projections, which take other tilings.
WIDER = [(4, 256, 512, True), (16, 96, 1008, False)]
DEVICE_CASES = [
    *CASES,
    *WIDER,
    (4, 6144, 4096, True),
    (32, 22016, 4096, False),
    (3, 4096, 11008, False),
    (40, 6144, 4096, True),
    (64, 22016, 4096, False),
    (48, 4096, 11008, False),
]


def relative_error(case: tuple[int, int, int, bool], device: str, dtype: torch.dtype) -> float:
    """Against float64, over splits of K: one, and several that are merged."""
    from cgbench.kernels.triton_linear import Tiling, linear

    x, weight, bias, expected = drawn(case, device, dtype)
    splits_of_k = (1, 4) if device == "cpu" else (1, 2, 4, 8)
    tilings = [None, *(Tiling(32, 64, splits, 4, 3) for splits in splits_of_k)]
    return max(
        largest_error(ends_of(partial(linear, x, weight, bias, tiling=tiling), expected))
        for tiling in tilings
    )


def test_interpreter_equals_torch() -> None:
    check_interpreted(relative_error, CASES, below=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_the_device(case: tuple[int, int, int, bool], dtype: torch.dtype) -> None:
    # One rounding of the output at the end, and none before it.
    assert relative_error(case, "cuda", dtype) < (4e-3 if dtype == torch.bfloat16 else 5e-4)


@pytest.mark.gpu
def test_splits_are_added_in_one_order() -> None:
    from cgbench.kernels.triton_linear import linear

    x = torch.randn(4, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    first = linear(x, weight, None)
    assert all(torch.equal(linear(x, weight, None), first) for _ in range(50))


def test_what_is_streamed_and_how_it_is_cut() -> None:
    """Up to 64 rows are. Above 32 the tile of outputs is wider, if all tiles then run at once."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from cgbench.kernels.library_rows import LEAST_ROWS
    from cgbench.kernels.triton_linear import MAX_ROWS, can_stream, tiling_of

    with FakeTensorMode():
        few, most, more, weight = (
            torch.empty(rows, 4096, device="cuda", dtype=torch.bfloat16)
            for rows in (1, 64, 65, 22016)
        )
        taken = [can_stream(x, weight) for x in (few, most, more)]
    assert taken == [True, True, False]
    # Whose rows cuBLAS multiplies are the next ones.
    assert LEAST_ROWS == MAX_ROWS + 1 == 65
    assert [tiling_of(22016, rows).block_n for rows in (32, 33, 64)] == [64, 128, 128]
    # A vocabulary's tiles are more than run at once at either width, and few outputs' are fewer.
    for outputs in (151680, 4096):
        assert tiling_of(outputs, 32) == tiling_of(outputs, 64)
