"""Products of quantised rows and FP8 weights against their values' products: in Triton's
interpreter here, compiled on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels import linear
from cgbench.kernels.fp8.block_scales import FP8, dequantised, row_blocks_of
from cgbench.kernels.fp8.scaled_products import scaled_linear
from cgbench.kernels.fp8.token_values import quantised_tokens, token_values
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")

from cgbench.kernels.fp8 import library_products

CASES = [
    # rows, outputs, inputs, scales: of blocks of so many, of a channel (-1) or of a tensor (0)
    (1, 64, 128, 128),
    (5, 104, 576, 128),
    (4, 48, 352, 64),
    (16, 48, 336, 32),
    (3, 48, 176, 16),
    (70, 64, 256, 128),
    (150, 40, 144, 128),
    (4, 64, 208, -1),
    (33, 40, 96, 0),
]
MANY = [(256, 4096, 11008, 128), (1000, 6144, 4096, -1), (2048, 2112, 7168, 128)]
WIDER = [(4, 256, 512, 128), (5, 208, 576, 128), (16, 96, 1008, 32), (150, 136, 272, 128)]
DEVICE_CASES = [*CASES, *WIDER, (4, 22016, 4096, 128), (32, 4096, 11008, 128), *MANY]

MOST_ERROR = 2e-6
"""Of a product in float32. The order of the sums alone differs."""


def drawn(case: tuple[int, int, int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, its scales and their rows."""
    _, outputs, inputs, block = case
    weight = torch.randn(outputs, inputs, device=device).to(FP8)
    blocks = (outputs if block else 1, 1)
    if block > 0:
        blocks = (-(-outputs // block), -(-inputs // block))
    scale = (torch.rand(blocks, device=device) + 0.5) / inputs**0.5
    return weight, scale, row_blocks_of(outputs, blocks[0]).to(device)


def relative_error(case: tuple[int, int, int, int], device: str, dtype: torch.dtype) -> float:
    """Against float64, over splits of K and all that can follow the product."""
    from cgbench.kernels.triton_linear import Scales, Tiling, linear
    from tests.support.product_ends import random_rotary

    rows, outputs, inputs, _ = case
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight, scale, row_blocks = drawn(case, device)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    bias = torch.randn(outputs, device=device, dtype=dtype)
    expected = F.linear(token_values(x, scale.shape[1]).double(), values.double(), bias.double())
    residual = torch.randn(rows, outputs, device=device, dtype=dtype)
    pairs = []
    for tiling in [None, Tiling(32, 64, 2, 4, 3), Tiling(64, 128, 4, 4, 3)]:
        keywords = {"scales": Scales(scale, row_blocks, True), "tiling": tiling}
        product = linear(x, weight, bias, **keywords)
        added = linear(x, weight, bias, residual=residual, **keywords)
        pairs += [(product, expected), (added, expected + residual.double())]
        gate, up = product.chunk(2, dim=-1)
        gated = linear(x, weight, bias, is_gated=True, **keywords)
        pairs.append((gated, (F.silu(gate) * up).double()))
        rotary, rotated = random_rotary(product)
        pairs.append((linear(x, weight, bias, rotary=rotary, **keywords), rotated))
    errors = [(got.double() - right).norm() / right.norm() for got, right in pairs]
    return max(float(error) for error in errors)


@pytest.mark.parametrize(
    ("weight", "scale", "right"),
    [
        ((6144, 4096), (48, 32), True),
        ((128, 512), (1, 4), True),
        # 86 blocks of columns are padded to 88.
        ((4096, 11008), (32, 86), True),
        # Half a block of rows, a scale a channel, a part that cuts a block of rows or of columns.
        ((2112, 7168), (17, 56), False),
        ((6144, 4096), (6144, 1), False),
        ((1408, 4096), (12, 32), False),
        ((4096, 704), (32, 11), False),
        # Three parts with a scale each, of 256, 64 and 64 rows.
        ((384, 128), (3, 1), False),
    ],
)
def test_what_torch_s_product_takes(
    weight: tuple[int, int], scale: tuple[int, int], right: bool
) -> None:
    assert library_products.fits(weight, scale) is right


def test_how_many_rows_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer are read as fast by our own kernel. Torch's wants multiples of 16."""
    monkeypatch.setattr(library_products, "_has_product", lambda device: True)
    weight, scale = torch.zeros(128, 512).to(FP8), torch.ones(1, 4)

    def takes(rows: int) -> bool:
        x = torch.zeros(rows, 512, dtype=torch.bfloat16)
        return library_products.can_multiply(x, weight, None, scale)

    assert [takes(rows) for rows in (32, 48, 250, 256)] == [False, True, False, True]


def test_a_cpu_has_no_such_product() -> None:
    x, weight = torch.zeros(64, 512, dtype=torch.bfloat16), torch.zeros(128, 512).to(FP8)
    assert not library_products.can_multiply(x, weight, None, torch.ones(1, 4))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [(48, 128, 512), (256, 6144, 4096), (64, 2048, 7168), (64, 4096, 11008)],
)
def test_many_rows_by_torch_on_a_gpu(rows: int, outputs: int, inputs: int) -> None:
    """Each row and column of scales apart, and rows that differ in size."""
    torch.manual_seed(rows)
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    x *= torch.logspace(-2, 2, rows, device="cuda")[:, None].bfloat16()
    weight, scale, row_blocks = drawn((rows, outputs, inputs, 128), "cuda")
    assert library_products.can_multiply(x, weight, None, scale)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    expected = F.linear(token_values(x, scale.shape[1]).double(), values.double())
    got = linear.linear(x, weight, None, scale, row_blocks, is_w8a8=True).double()
    errors = (got - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(errors.max()) < 4e-3


def test_interpreter_equals_the_product_of_the_values() -> None:
    check_interpreted(relative_error, CASES, below=MOST_ERROR)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_the_device(case: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """In float32 nothing hides the sum, so a promotion that is missing shows: see below."""
    bounds = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: MOST_ERROR}
    assert relative_error(case, "cuda", dtype) < bounds[dtype]


def of_tensor_cores(codes: Tensor, weight: Tensor) -> Tensor:
    """Sums of 32 columns at a time, of which tensor cores keep 14 bits, and no float32 sum."""
    total = torch.zeros(codes.shape[0], weight.shape[0])
    for k in range(0, codes.shape[1], 32):
        exact = F.linear(codes[:, k : k + 32].float(), weight[:, k : k + 32].float())
        mantissa, exponent = torch.frexp(total + exact)
        total = torch.ldexp((mantissa * 2**14).trunc() / 2**14, exponent)
    return total


def test_a_missing_promotion_is_more_than_the_bound() -> None:
    """Of a weight with scales of channels, where no scale of a block would show it."""
    case = (4, 256, 4096, -1)
    torch.manual_seed(0)
    weight, scale, row_blocks = drawn(case, "cpu")
    x = torch.randn(4, 4096)
    stored, row_scale = quantised_tokens(x, 1)
    faulty = of_tensor_cores(stored, weight) * row_scale * scale[row_blocks, 0]
    right = scaled_linear(x, weight, None, scale, row_blocks, True)
    error = float((faulty - right).norm() / right.norm())
    assert 20 * MOST_ERROR < error < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_definition_rounds_its_result_once(dtype: torch.dtype) -> None:
    weight, scale, row_blocks = drawn((3, 24, 80, 16), "cpu")
    x = torch.randn(3, 80, dtype=dtype)
    values = dequantised(weight, scale, row_blocks, torch.float32)
    bias = torch.randn(24, dtype=dtype)
    expected = F.linear(token_values(x, 5), values, bias.float()).to(dtype)
    assert torch.equal(scaled_linear(x, weight, bias, scale, row_blocks, True), expected)
