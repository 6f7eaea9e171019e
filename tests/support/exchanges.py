"""What ranks on GPUs are asked about their exchanges. Every rank imports this module."""

import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from cgbench.kernels import triton_exchange
from cgbench.measure.collectives_alone import CollectivesAlone
from cgbench.parallel import inboxes
from cgbench.parallel.collectives import Collective, stacked_over_ranks, sum_over_ranks
from cgbench.parallel.inboxes import why_no_inboxes
from cgbench.parallel.ranks import Ranks, barrier, gathered

SIZES = (2, 8, 1000, 4096, 16_384, 131_072, 131_074, 1_000_006)
REPLAYS = 2000


@dataclass(frozen=True)
class Told:
    """``error``: of sums, relative to their rounding. ``wrong``: numbers in many replays that were
    not what was sent. ``sums``: a fingerprint, which all ranks have alike."""

    why_not: str | None
    error: float
    gathers: bool
    wrong: int
    sums: list[float]


def exchange(*, ranks: Ranks) -> list[Told]:
    """Every rank's sums and gathers of many sizes, eager, and then of three in a graph."""
    errors, fingerprints, gathers = [], [], True
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for number, size in enumerate((*SIZES, triton_exchange.MAX_BYTES // dtype.itemsize)):
            torch.manual_seed(100 * number + ranks.rank)
            part = torch.randn(size, device="cuda").to(dtype)
            exact = part.double()
            dist.all_reduce(exact)
            got = sum_over_ranks(part.clone()).double()
            errors.append(float((got - exact).norm() / exact.norm()) / torch.finfo(dtype).eps)
            fingerprints.append(float(got.sum()))
            parts = [torch.empty_like(part) for _ in range(ranks.size)]
            dist.all_gather(parts, part)
            gathers &= torch.equal(stacked_over_ranks(part), torch.stack(parts))
    told = Told(why_no_inboxes(), max(errors), gathers, _wrong_in_replays(ranks), fingerprints)
    return gathered(told)


def _wrong_in_replays(ranks: Ranks) -> int:
    """Counted on the device: in replays without a stop between them, of which one rank's are late
    now and then."""
    step = torch.zeros((), device="cuda")
    wrong = torch.zeros((), dtype=torch.long, device="cuda")

    def run() -> None:
        step.add_(1).remainder_(64)
        for size in (16_384, 8, 1_310_720, 1000, 400_002, 16_384):
            sent = (step + ranks.rank).expand(size).to(torch.bfloat16)
            expected = ranks.size * step + sum(range(ranks.size))
            wrong.add_((sum_over_ranks(sent.contiguous()) != expected).sum())

    run()
    torch.cuda.synchronize()
    barrier("the capture of exchanges")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        run()
    for replay in range(REPLAYS):
        if replay % 50 == 25 * ranks.rank:
            torch.cuda._sleep(200_000)
        graph.replay()
    torch.cuda.synchronize()
    graph.reset()
    return int(wrong)


STEPS_OF_INBOXES = ("_reachable_zeros", "_mapped")


def differ(*, ranks: Ranks) -> dict[str, list[tuple[str | None, bool]]]:
    """Of two ranks one can open its inbox. What each then says: why there are none, and whether.
    By the function in which the other one cannot."""
    return {step: _differ(step, ranks) for step in STEPS_OF_INBOXES}


def _differ(step: str, ranks: Ranks) -> list[tuple[str | None, bool]]:
    given: dict[str, Any] = {
        "_reachable_zeros": torch.zeros(1),
        "_mapped": mock.Mock(buffer_ptrs=[0, 0]),
    }
    mocks = {name: mock.Mock(return_value=each) for name, each in given.items()}
    if ranks.rank == 1:
        mocks[step].side_effect = RuntimeError("no memory")
    with (
        mock.patch.multiple(inboxes, _obstacle=lambda _: None, **mocks),
        inboxes.open_inboxes(ranks),
    ):
        is_mapped = mocks["_mapped"].called
        assert is_mapped == (step == "_mapped")
        return gathered((inboxes.why_no_inboxes(), inboxes.opened_inboxes() is None))


def sums_of_two_streams(*, ranks: Ranks) -> list[int]:
    """Sums that are under way, for one rank is late, while the collectives alone are set up, which
    have a stream of their own. How many came out wrong, on each rank."""
    calls = [Collective("all_reduce", (4096,), torch.bfloat16)] * 50
    wrong = torch.zeros((), dtype=torch.long, device="cuda")
    with mock.patch.object(triton_exchange, "TIMEOUT_S", 5.0):
        for _ in range(20):
            for number in range(50):
                if ranks.rank == 1:
                    torch.cuda._sleep(100_000)
                sent = torch.full((4096,), number + ranks.rank, dtype=torch.bfloat16, device="cuda")
                expected = ranks.size * number + sum(range(ranks.size))
                wrong += (sum_over_ranks(sent) != expected).sum()
            alone = CollectivesAlone(calls, wrong.device)
            alone.seconds()
            alone.release()
    return gathered(int(wrong))


def wait_in_vain(size: int, *, ranks: Ranks) -> None:
    """Rank 1 takes no part in a sum, which has a time limit."""
    if ranks.rank == 1:
        time.sleep(600)
    with mock.patch.object(triton_exchange, "TIMEOUT_S", 1.0):
        sum_over_ranks(torch.zeros(size, device="cuda"))
    torch.cuda.synchronize()
