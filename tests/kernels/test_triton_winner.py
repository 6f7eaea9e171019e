"""The kernels around an argmax over ranks against torch's operations, which define them."""

import pytest
import torch
from torch import Tensor

from cgbench.kernels.winner import pack_by_torch, winner_by_torch
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

SHAPES = [(1,), (3,), (2, 4), (300,)]
COLUMNS = 33


def numbers(shape: tuple[int, ...], seed: int, device: str) -> Tensor:
    """Few values, so that ranks have equals, and rows of nothing but -inf."""
    draws = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 5, shape, generator=draws).float()
    found[torch.rand(shape[:-1], generator=draws) < 0.2] = float("-inf")
    return found.to(device)


def check_winner(device: str) -> int:
    """The number of argmaxes compared."""
    from cgbench.kernels import triton_winner

    compared = 0
    for num_ranks in (2, 3):
        for seed, shape in enumerate(SHAPES):
            whole = numbers((*shape, num_ranks * COLUMNS), seed, device)
            packed = []
            # Parts of one tensor: rows that lie apart.
            for rank, part in enumerate(whole.chunk(num_ranks, -1)):
                arguments = (part, part.argmax(-1), rank * COLUMNS)
                packed.append(triton_winner.pack(*arguments))
                assert torch.equal(packed[-1], pack_by_torch(*arguments)), (num_ranks, shape)
            stacked = torch.stack(packed)
            chosen = triton_winner.winner(stacked)
            assert torch.equal(chosen, winner_by_torch(stacked)), (num_ranks, shape)
            assert torch.equal(chosen, whole.argmax(-1)), (num_ranks, shape)
            compared += chosen.numel()
    return compared


def test_interpreted_kernels_are_torch_s() -> None:
    code = f"from {__name__} import check_winner; print(check_winner('cpu'))"
    assert int(run_interpreted(code)) == 2 * (1 + 3 + 8 + 300)


@pytest.mark.gpu
def test_kernels_are_torch_s_on_the_device() -> None:
    assert check_winner("cuda")


def test_a_nan_is_larger_than_any_number() -> None:
    run_interpreted(
        "import torch; from cgbench.kernels.triton_winner import winner\n"
        "packed = torch.tensor([[[2.0, 1.0]], [[float('nan'), 5.0]], [[3.0, 9.0]]])\n"
        "assert winner(packed).tolist() == [5]"
    )
