"""The kernels of a module's window and of a drafter's block against torch's, which define them."""

import pytest
import torch

from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import RowState
from cgbench.kernels.windows.draft_block import draft_block_by_torch
from cgbench.kernels.windows.module_window import module_window_by_torch
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

SLOTS, VOCAB = 7, 50


def random_rows(k: int, size: int, seed: int, device: str, dtype: torch.dtype) -> RowState:
    """Requests of 0 to 5 tokens, so that some windows would begin before position 0, in slots of
    their own, one padded row among them."""
    draws = torch.Generator().manual_seed(seed)
    state = DecodeState(
        spec_tokens=k,
        max_batch_size=6,
        scratch_slot=SLOTS,
        hidden_size=size,
        dtype=dtype,
        device=torch.device(device),
        num_modules=4,
    )
    rows = state.rows(5)
    rows.slot_of_row.copy_(torch.randperm(SLOTS, generator=draws)[:5])
    rows.slot_of_row[4] = SLOTS
    rows.seq_len.copy_(torch.randint(6, (5,), generator=draws))
    rows.seq_len[4] = 0
    rows.out.copy_(torch.randint(VOCAB, (5, k + 1), generator=draws))
    rows.drafts.copy_(torch.randint(VOCAB, (5, k), generator=draws))
    rows.num_accepted.copy_(torch.randint(k + 1, (5,), generator=draws))
    rows.fed.copy_(torch.randn(rows.fed.shape, generator=draws).to(dtype))
    rows.carries.copy_(torch.randn(rows.carries.shape, generator=draws).to(dtype))
    return rows


def check_windows(device: str, dtype: torch.dtype = torch.float32, num_seeds: int = 8) -> int:
    """Every step of every k, bit for bit; sizes of one part and of several."""
    from cgbench.kernels.windows import triton_window

    compared = 0
    for seed in range(num_seeds):
        for k, size in ((2, 24), (3, 40), (5, 2056), (8, 16)):
            for step in range(2, min(k, 4) + 1):
                expected, got = (random_rows(k, size, seed, device, dtype) for _ in range(2))
                by_torch = module_window_by_torch(expected, step)
                by_kernel = triton_window.module_window(got, step)
                for ours, theirs in zip(by_torch, by_kernel, strict=True):
                    assert torch.equal(ours, theirs), (seed, k, step)
                assert torch.equal(expected.carries, got.carries), (seed, k, step)
                compared += 1
    return compared


def check_blocks(device: str) -> int:
    """Every number of accepted drafts, with and without rows enough for the block."""
    from cgbench.kernels.windows import triton_block

    compared = 0
    for seed in range(3):
        for k, room in ((1, 9), (3, 40), (16, 26)):
            rows = random_rows(k, 8, seed, device, torch.float32)
            mask = torch.tensor([VOCAB], device=device)
            by_torch = draft_block_by_torch(rows, mask, room)
            assert int(by_torch.positions.max()) < room
            by_kernel = triton_block.draft_block(rows, mask, room)
            for ours, theirs in zip(by_torch, by_kernel, strict=True):
                assert torch.equal(ours, theirs), (seed, k)
            compared += 1
    return compared


def test_interpreter_equals_the_definition() -> None:
    code = (
        f"from {__name__} import check_blocks, check_windows\n"
        "print(check_windows('cpu', num_seeds=2), check_blocks('cpu'))"
    )
    assert run_interpreted(code) == "18 9\n"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_device_equals_the_definition(dtype: torch.dtype) -> None:
    assert check_windows("cuda", dtype) == 72
    assert check_blocks("cuda") == 9
