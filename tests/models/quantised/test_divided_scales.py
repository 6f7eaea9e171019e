"""Scales of FP8 weights that ranks divide by rows: each rank keeps those that its rows read."""

import pytest
import torch
from torch import nn

from cgbench.kernels.fp8 import library_products
from cgbench.kernels.fp8.block_scales import dequantised, quantised, row_blocks_of
from cgbench.models.division.shards import divide
from cgbench.models.division.splits import Split
from cgbench.models.quantised.scaled_modules import scales_of, set_scales
from cgbench.parallel.ranks import Ranks


@pytest.mark.parametrize(
    ("rows", "blocks", "fits"),
    [
        (1024, (1,), True),
        # Gate and up, each divided for itself.
        (1024, (1, 1), True),
        # Half of 3 blocks cuts one, which both ranks keep.
        (384, (1,), False),
    ],
)
def test_a_rank_keeps_the_scales_of_its_rows(
    rows: int, blocks: tuple[int, ...], fits: bool
) -> None:
    torch.manual_seed(0)
    weight, scale = quantised(torch.randn(rows, 512) * torch.arange(1, rows + 1)[:, None])
    row_blocks = row_blocks_of(rows, len(scale))
    values = dequantised(weight, scale, row_blocks, torch.float32)
    split = Split(0, blocks)
    for rank in range(2):
        module = nn.ModuleDict({"up": nn.Linear(512, rows, bias=False)})
        up = module["up"]
        up.weight = nn.Parameter(weight, requires_grad=False)
        set_scales(up, "weight", scale, row_blocks)
        ranks = Ranks(rank, 2)
        divide(module, {"up.weight": split}, ranks)
        found = scales_of(up, "weight")
        assert found is not None
        part = dequantised(up.weight, *found, torch.float32)
        assert torch.equal(part, split.part(values, ranks))
        assert library_products.fits(tuple(up.weight.shape), tuple(found[0].shape)) is fits
