"""The exchange's kernel against torch's sums: ranks are processes that share memory here, GPUs in
``tests/gpu/test_tensor_parallel.py``."""

import multiprocessing
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cgbench.parallel.launch import run_on_ranks
from tests.support.forkserver import forked_ranks
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

RANKS = (2, 3)


class Exchange(NamedTuple):
    size: int
    dtype: torch.dtype
    adds: bool


EXCHANGES = [
    Exchange(1500, torch.bfloat16, True),
    Exchange(6, torch.float32, False),
    # Of as many programs, and then fewer: each counts for itself.
    Exchange(1300, torch.float32, True),
    Exchange(2, torch.float16, True),
    Exchange(1200, torch.bfloat16, False),
    Exchange(1500, torch.bfloat16, True),
    # By pieces from here on, but for one: several tiles a program, and programs without any.
    Exchange(5000, torch.bfloat16, True),
    Exchange(1800, torch.float32, True),
    Exchange(6, torch.float32, True),
    Exchange(2002, torch.float16, False),
    Exchange(1537, torch.float32, False),
    Exchange(5000, torch.bfloat16, True),
]
FEW_BYTES = 3200


def part_of(rank: int, number: int) -> Tensor:
    """What a rank puts into an exchange. Float32 sums are rounded, and tell the order; sums of half
    precision are exact, for the interpreter cuts bfloat16 where a device rounds."""
    exchange = EXCHANGES[number]
    generator = torch.Generator().manual_seed(100 * number + rank)
    numbers = torch.randn(exchange.size, generator=generator).mul(10)
    return numbers if exchange.dtype == torch.float32 else numbers.round().to(exchange.dtype)


def expected(num_ranks: int, number: int) -> Tensor:
    parts = torch.stack([part_of(rank, number) for rank in range(num_ranks)])
    if not EXCHANGES[number].adds:
        return parts
    total = torch.zeros(parts.shape[1])
    for part in parts:
        total += part.float()
    return total.to(parts.dtype)


def check_ranks(num_ranks: int) -> None:
    """Every rank a process, of which the last is late every time."""
    from cgbench.kernels import triton_exchange
    from cgbench.kernels.triton_exchange import Inboxes, inbox_words

    torch.set_num_threads(1)
    # Few programs, for they take turns here.
    triton_exchange.PIECE_PROGRAMS = 6
    triton_exchange.TILE_BYTES = 512
    memory = [torch.zeros(inbox_words(num_ranks), dtype=torch.int64) for _ in range(num_ranks)]
    addresses = torch.tensor([each.share_memory_().data_ptr() for each in memory])

    def be_rank(rank: int) -> None:
        counts = torch.zeros(triton_exchange.NUM_COUNTS, dtype=torch.int32)
        inboxes = Inboxes(addresses, counts, rank, few_bytes=FEW_BYTES)
        for number, exchange in enumerate(EXCHANGES):
            part = part_of(rank, number)
            assert inboxes.take(part)
            if rank == num_ranks - 1:
                time.sleep(0.05)
            if exchange.adds:
                inboxes.add_up(part)
            got = part if exchange.adds else inboxes.gather(part)
            assert torch.equal(got, expected(num_ranks, number)), (rank, number)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=be_rank, args=(rank,)) for rank in range(num_ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * num_ranks, codes


@pytest.mark.parametrize("num_ranks", RANKS)
def test_interpreted_ranks_have_the_same_sums(num_ranks: int) -> None:
    run_interpreted(f"from {__name__} import check_ranks; check_ranks({num_ranks})")


def test_all_ranks_have_inboxes_or_none_has() -> None:
    """Whichever of the steps one of them cannot take."""
    from tests.support import exchanges

    with forked_ranks():
        told = run_on_ranks(2, "cpu", exchanges.differ)
    none_has = [("rank 1: RuntimeError: no memory", True)] * 2
    assert told == dict.fromkeys(("_reachable_zeros", "_mapped"), none_has)


def test_up_to_which_size_a_part_goes_as_words_can_be_chosen() -> None:
    from cgbench.kernels.triton_exchange import FEW_BYTES, Inboxes

    inboxes = Inboxes(torch.zeros(3, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)
    part = torch.zeros(8)
    # 32 bytes to each of the two others.
    assert inboxes.few_bytes == FEW_BYTES and inboxes.by_words(part)
    assert inboxes._replace(few_bytes=64).by_words(part)
    assert not inboxes._replace(few_bytes=63).by_words(part)


def test_what_is_not_taken() -> None:
    from cgbench.kernels.triton_exchange import MAX_BYTES, Inboxes

    inboxes = Inboxes(torch.zeros(2, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), 0)
    assert inboxes.take(torch.zeros(MAX_BYTES // 2, dtype=torch.bfloat16))
    for part in (
        torch.zeros(MAX_BYTES // 2 + 2, dtype=torch.bfloat16),
        torch.zeros(3, dtype=torch.bfloat16),
        torch.zeros(4, dtype=torch.bfloat16)[1:3],
        torch.zeros(4, 4)[:, :2],
        torch.zeros(0),
        torch.zeros(4, dtype=torch.long),
    ):
        assert not inboxes.take(part)
