"""Start the ranks of a tensor parallel run, and report in one line why one of them ended.

torch's elastic launcher starts the ranks and gives them their environment. When one ends badly, it
stops the others. Under ``torchrun`` the ranks are there already. torch is imported only where ranks
are really started.
"""

import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar

from cgbench.errors import (
    BadInputError,
    ExitCode,
    RankFailedError,
    RankLostError,
    exit_code_of,
    one_line,
)
from cgbench.inputs import shown
from cgbench.parallel.ranks import ALONE, check_num_ranks, process_group

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_T = TypeVar("_T")

GRACE_S = 10
"""A rank that has lost another rank waits this many seconds before it ends.

So the other rank's end is seen first, which is the one to report. Meanwhile the launcher or
torchrun ends the rank that waits.
"""

StartMethod: TypeAlias = Literal["spawn", "forkserver"]

START_METHOD: StartMethod = "spawn"
"""The launcher starts ranks in this way. Spawned ranks share no state with their parent."""

# The signals that the launcher catches.
_CAUGHT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

# What a broken connection looks like from the rank that is left. torch's own errors have a class,
# and gloo's do not.
_LOST_WORDS = ("gloo", "Connection closed by peer", "Connection reset by peer")


def ranks_asked(tp: int | None) -> int:
    """Return how many ranks ``--tp`` and torchrun's environment ask for.

    Raise ``BadInputError`` if the two differ, or if the environment names no number.
    """
    if tp is not None and tp < 1:
        raise BadInputError(f"--tp {tp}: must be at least 1")
    started = _ranks_started()
    if started > 1 and tp not in (None, started):
        raise BadInputError(f"--tp {tp}: torchrun has started {started} ranks. Drop --tp")
    return started if tp is None else tp


def _ranks_started() -> int:
    """Return the number of ranks that torchrun, or whatever sets its variables, has started.

    It is 1 if the environment names no rank.
    """
    if "RANK" not in os.environ:
        return 1
    size = os.environ.get("WORLD_SIZE", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,5}", size):
        raise BadInputError(f"WORLD_SIZE {shown(size)}: the environment's ranks must be 1 or more")
    return int(size)


def run_on_ranks(
    tp: int,
    device: str,
    job: Callable[..., _T],
    *args: Any,
    start_method: StartMethod | None = None,
    **kwargs: Any,
) -> _T:
    """Run ``job`` on each of ``tp`` ranks, and return the answer of rank 0.

    ``job`` is a module's function, because the ranks import it. It takes its own ``Ranks`` as the
    keyword ``ranks``. ``device`` is cpu, cuda or auto. ``start_method`` None means
    ``START_METHOD``. Only the first rank prints.

    With one rank, or with ranks started by torchrun, the errors are those of ``job``. With ranks
    started here, raise ``RankFailedError`` if one fails. Raise ``DeviceError`` before any starts if
    there are too many.
    """
    if tp == 1:
        return job(*args, ranks=ALONE, **kwargs)
    if _ranks_started() > 1:
        return _as_rank(_device_type(device), job, args, kwargs)
    method = start_method or START_METHOD
    return _launched(tp, _device_type(device), method, job, args, kwargs)


def _device_type(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _as_rank(
    device_type: str, job: Callable[..., _T], args: Sequence[Any], kwargs: Mapping[str, object]
) -> _T:
    from cgbench.parallel.inboxes import open_inboxes

    with process_group(device_type) as ranks, open_inboxes(ranks):
        if not ranks.is_first:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        return job(*args, ranks=ranks, **kwargs)


@dataclass(frozen=True, slots=True)
class _Report:
    """A report is what a rank leaves about its end.

    ``lost`` means that it only noticed that another rank was gone.
    """

    rank: int
    line: str
    exit_code: int
    lost: bool


def _launched(
    tp: int,
    device_type: str,
    start_method: StartMethod,
    job: Callable[..., _T],
    args: Sequence[Any],
    kwargs: Mapping[str, object],
) -> _T:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_num_ranks(tp, device_type)
    stopped_by: signal.Signals | None = None
    with tempfile.TemporaryDirectory(prefix="cgbench-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=tp,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            start_method=start_method,
            logs_specs=DefaultLogsSpecs(folder, dict.fromkeys(range(1, tp), Std.ALL)),
        )
        try:
            with _own_signals(), _quiet_elastic():
                answers = elastic_launch(config, _rank_main)(
                    Path(folder), device_type, job, args, kwargs
                )
        except ChildFailedError as failed:
            raise _failure(failed, Path(folder)) from None
        except SignalException as signalled:
            stopped_by = signalled.sigval
    if stopped_by is not None:
        # The launcher caught the signal to stop the ranks. Now it does what it does to one process.
        signal.raise_signal(stopped_by)
        raise RankFailedError(f"{stopped_by.name} stopped the ranks", ExitCode.CANNOT)
    answer: _T = answers[0]
    return answer


@contextmanager
def _own_signals() -> Iterator[None]:
    """Put back this process's signal handlers when the launcher is done."""
    before = {number: signal.getsignal(number) for number in _CAUGHT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


@contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Silence the launcher's log.

    It logs every failure in many lines, and the one line that counts is ours.
    """
    if "--debug" not in sys.argv:
        logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _rank_main(
    reports: Path, device_type: str, job: Callable[..., _T], args: Sequence[Any], kwargs: Any
) -> _T:
    # This signal comes when the launcher is interrupted, or gone. Python's own handler waits for
    # the device, which may wait for a rank that has ended.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _as_rank(device_type, job, args, kwargs)
    except Exception as error:
        _end(reports, error)


def _end(reports: Path, error: Exception) -> NoReturn:
    """Leave a report and end at once.

    The orderly end of a process group would wait for the other ranks.
    """
    rank, lost = int(os.environ["RANK"]), is_lost(error)
    code = exit_code_of(error)
    report = _Report(rank, one_line(error), int(code), lost)
    _leave(report, reports)
    if "--debug" in sys.argv:
        logging.getLogger(__name__).exception("rank %d", rank, exc_info=error)
    if lost:
        time.sleep(GRACE_S)
    sys.stderr.flush()
    os._exit(code)


def _leave(report: _Report, reports: Path) -> None:
    """Write the report whole or not at all.

    The launcher may stop this rank while it writes.
    """
    aside = reports / f"rank{report.rank}.part"
    aside.write_text(json.dumps(asdict(report)))
    os.replace(aside, reports / f"rank{report.rank}.json")


def is_lost(error: BaseException | None) -> bool:
    """Return whether an error means that another rank does not answer any more.

    The errors that caused it count too.
    """
    from torch.distributed import DistError

    if error is None:
        return False
    is_broken = isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST_WORDS)
    if isinstance(error, DistError | RankLostError) or is_broken:
        return True
    return is_lost(error.__cause__)


def _failure(failed: "ChildFailedError", reports: Path) -> RankFailedError:
    """Return the end that began all others.

    A rank's own error comes before a rank's death, and both come before a lost neighbour.
    """
    files = sorted(reports.glob("rank*.json"))
    told = {r.rank: r for r in (_Report(**json.loads(file.read_text())) for file in files)}
    own = [report for report in told.values() if not report.lost]
    if own:
        return _told(own[0], alone=len(own) == 1)
    dead = [rank for rank in failed.failures if rank not in told]
    if dead:
        ended = failed.failures[dead[0]]
        how = ended.signal_name() if ended.exitcode < 0 else f"exit status {ended.exitcode}"
        return RankFailedError(
            f"rank {dead[0]} died ({how}). The other ranks were stopped", ExitCode.CANNOT
        )
    return _told(next(iter(told.values())), alone=True)


def _told(report: _Report, *, alone: bool) -> RankFailedError:
    """Return the error of a report. It names the rank if only that one failed."""
    line = f"rank {report.rank}: {report.line}" if alone else report.line
    return RankFailedError(line, ExitCode(report.exit_code))
