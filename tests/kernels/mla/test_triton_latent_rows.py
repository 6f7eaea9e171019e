"""The norms and the rotary of a latent's row, in one kernel, against their definition."""

from dataclasses import dataclass

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave

from cgbench.kernels.mla.latent_rows import (
    LatentNorms,
    PairRotary,
    latent_rows_by_torch,
    rotate_pairs,
)
from tests.support.interpreter import check_interpreted

pytest.importorskip("triton")


@dataclass(frozen=True)
class Case:
    batch: int
    query_len: int
    query_rank: int
    rank: int
    rotary: int


CASES = [Case(1, 1, 24, 16, 8), Case(3, 4, 40, 24, 12), Case(2, 2, 1536, 512, 64)]


def max_error(case: Case, device: str, dtype: torch.dtype) -> float:
    from cgbench.kernels.mla import triton_latent_rows

    torch.manual_seed(case.rank)
    width = case.query_rank + case.rank + case.rotary
    # A part of a wider product, as a divided one may be.
    wide = torch.randn(case.batch, case.query_len, width + 8, device=device, dtype=dtype)
    x = wide[..., :width]
    gains = [torch.rand(n, device=device, dtype=dtype) + 0.5 for n in (case.query_rank, case.rank)]
    norms = LatentNorms(gains[0], 1e-6, gains[1], 1e-3)
    angles = torch.rand(case.batch, case.query_len, case.rotary, device=device) * 6
    rotary = PairRotary(angles.cos().to(dtype), angles.sin().to(dtype))
    expected = latent_rows_by_torch(x, norms, rotary)
    got = triton_latent_rows.latent_rows(x, norms, rotary)
    assert [each.shape for each in got] == [each.shape for each in expected]
    pairs = zip(got, expected, strict=True)
    return max((ours.float() - theirs.float()).abs().max().item() for ours, theirs in pairs)


def test_interpreter_equals_definition() -> None:
    check_interpreted(max_error, CASES, below=1e-5)


def test_pairs_are_rotated_as_transformers_rotates_them() -> None:
    x, angles = torch.randn(2, 3, 4, 8), torch.rand(2, 4, 4)
    both = torch.cat([angles, angles], dim=-1)
    cos, sin = both.cos(), both.sin()
    expected, _ = apply_rotary_pos_emb_interleave(x, x, cos, sin)
    assert torch.equal(rotate_pairs(x, PairRotary(cos, sin)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "below"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04)])
def test_on_the_device(case: Case, dtype: torch.dtype, below: float) -> None:
    assert max_error(case, "cuda", dtype) < below
