"""Find which rank this process is, and exchange values between ranks on the host.

``Ranks`` is handed to whoever divides by it. Device tensors travel by ``collectives``, and control
values travel here. They have a gloo group of their own, so that waiting for a rank never waits on a
device. With one rank, every function returns its own value.

torch is imported only where ranks are really started.
"""

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from cgbench.errors import DeviceError, RankLostError, RanksError
from cgbench.kernels.timeout import COLLECTIVE_TIMEOUT_S

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

_T = TypeVar("_T")


BARRIER_TIMEOUT_S = 120
"""After this many seconds a barrier names the ranks that are missing.

Ranks may be apart by the time of a compiler's run.
"""

MAX_RANKS_ANY_CPU = 8
"""This many ranks may share any CPU, even one of fewer cores.

That is slow, but enough to try a model's parts.
"""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This class names the ranks that share a model, and which of them this process is.

    Rank 0 measures, prints and writes.
    """

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Return whether this process is rank 0."""
        return self.rank == 0


ALONE = Ranks(rank=0, size=1)
"""This is a process that shares its model with no other."""


@dataclass(frozen=True, slots=True)
class _Joined:
    """The process group of the ranks, and the one for control beside it."""

    ranks: Ranks
    control: "dist.ProcessGroup"


_joined: _Joined | None = None
"""There is one a process, as ``torch.distributed`` keeps its groups."""


def joined() -> Ranks:
    """Return the ranks whose process group this process is in.

    Only collectives ask for them, because they are called from within a model's forward. The
    forward hands down nothing of ours.
    """
    return ALONE if _joined is None else _joined.ranks


def agreed(value: _T) -> _T:
    """Return rank 0's ``value`` on every rank.

    It is for decisions that depend on a clock or a file.
    """
    if _joined is None:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0, group=_joined.control)
    return box[0]


def gathered(value: _T) -> list[_T]:
    """Return every rank's ``value``, in the order of ranks."""
    if _joined is None:
        return [value]
    import torch.distributed as dist

    values: list[_T] = [value] * _joined.ranks.size
    dist.all_gather_object(values, value, group=_joined.control)
    return values


def first_failure(failure: str | None) -> str | None:
    """Return the first failure of any rank, or None if no rank has one.

    Every rank passes its own failure or None. All get the same failure, so that all act alike. The
    text begins with the number of the rank, except for rank 0's own on rank 0.
    """
    found = gathered(failure)
    if _joined is None or (failure is not None and _joined.ranks.is_first):
        return failure
    return next((f"rank {i}: {text}" for i, text in enumerate(found) if text is not None), None)


def first_unlike(value: object, what: str) -> str | None:
    """Return in words which rank's ``value`` is not rank 0's, or None if all are the same.

    Call it before a step that depends on the value and that all ranks take together or not at all.
    """
    first, *others = gathered(value)
    return next(
        (f"rank {i}: {what} are not rank 0's" for i, its in enumerate(others, 1) if its != first),
        None,
    )


def barrier(what: str, timeout_s: float = BARRIER_TIMEOUT_S) -> None:
    """Wait for all ranks before ``what``.

    Raise ``RanksError`` with ``what`` and the missing ranks after the timeout. Raise
    ``RankLostError`` if a rank has gone.
    """
    if _joined is None:
        return
    import torch.distributed as dist

    rank, start = _joined.ranks.rank, time.monotonic()
    try:
        dist.monitored_barrier(_joined.control, timedelta(seconds=timeout_s), wait_all_ranks=True)
    except RuntimeError as error:
        # In both cases gloo words it as a timeout.
        waited_s = time.monotonic() - start
        if waited_s < 0.9 * timeout_s:
            raise RankLostError(f"rank {rank} lost another one before {what}") from error
        raise RanksError(
            f"rank {rank} waited {waited_s:.0f} s for the others before {what}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error


@contextmanager
def process_group(device_type: str) -> Iterator[Ranks]:
    """Join the group that the environment names (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``..).

    ``device_type`` cuda uses NCCL and the device of the local rank, and cpu uses gloo. Graphs must
    be released inside. After an exception the group is left as it is, because its end would wait
    for ranks that may be gone. Raise ``DeviceError`` if there are more ranks than CUDA devices.
    """
    import torch
    import torch.distributed as dist

    global _joined
    device = _own_device(device_type)
    dist.init_process_group(
        "gloo" if device is None else "nccl",
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        device_id=device,
    )
    control = dist.new_group(backend="gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    _joined = _Joined(Ranks(dist.get_rank(), dist.get_world_size()), control)
    yield _joined.ranks
    gc.collect()
    if device is not None:
        torch.cuda.synchronize(device)
    barrier("the end")
    _joined = None
    dist.destroy_process_group()


def _own_device(device_type: str) -> "torch.device | None":
    """Return this rank's GPU, made current, or None on the CPU.

    On the CPU the ranks share out the cores.
    """
    import torch

    local_rank, num_local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device_type == "cpu":
        # transformers takes the first accelerator that it sees for the one to shard over.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_local))
        return None
    check_num_ranks(num_local, device_type)
    # The multicast of NVSwitch (NVLS) fails where a container may not map it.
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def check_num_ranks(num_ranks: int, device_type: str) -> None:
    """Raise ``DeviceError`` if the machine cannot hold ``num_ranks`` ranks.

    There may be as many as CUDA devices. On the CPU there may be as many as cores, and at least
    eight.
    """
    if device_type == "cpu":
        cores = os.cpu_count() or 1
        most, why = max(MAX_RANKS_ANY_CPU, cores), f"{cores} CPU cores"
    else:
        import torch

        most = torch.cuda.device_count()
        why = f"{most} CUDA devices"
    if num_ranks > most:
        raise DeviceError(f"--tp {num_ranks}: this machine has {why}, --tp may be up to {most}")
