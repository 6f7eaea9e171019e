"""Every way in which ranks end badly: one line, an exit code, and nobody left behind."""

import os
import signal
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cgbench.errors import (
    BadInputError,
    DeviceError,
    ExitCode,
    RankFailedError,
    RankLostError,
    RanksError,
)
from cgbench.measure import rank_facts
from cgbench.models.heads.families import QWEN
from cgbench.parallel import launch, ranks
from cgbench.parallel.launch import ranks_asked, run_on_ranks
from cgbench.parallel.ranks import Ranks
from cgbench.rundir.store import RunDirectory
from tests.support import rank_faults
from tests.support.command import FAST, cgbench
from tests.support.tiny import add_tokenizer, make_checkpoint

ALL_GONE_S = 30


def failure(job: Callable[..., object], *args: object) -> RankFailedError:
    """How the ranks ended: in time, and with no process left."""
    start = time.monotonic()
    with pytest.raises(RankFailedError) as caught:
        run_on_ranks(2, "cpu", job, *args)
    assert time.monotonic() - start < ALL_GONE_S
    assert ranks_left() == []
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_report_that_a_rank_was_stopped_in_is_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    reports = [launch._Report(rank, f"line {rank}", 3, lost=False) for rank in range(2)]
    launch._leave(reports[0], tmp_path)
    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        launch._leave(reports[1], tmp_path)
    ended: Any = SimpleNamespace(failures={})
    assert str(launch._failure(ended, tmp_path)) == "rank 0: line 0"


def test_a_rank_that_exits_without_a_report_is_told_of_by_its_status(tmp_path: Path) -> None:
    ended: Any = SimpleNamespace(failures={1: SimpleNamespace(exitcode=7)})
    error = launch._failure(ended, tmp_path)
    assert str(error) == "rank 1 died (exit status 7). The other ranks were stopped"
    assert error.exit_code is ExitCode.CANNOT


def ranks_left() -> list[int]:
    """The fork server's processes. Other servers of the tests keep theirs."""
    server: Any = forkserver._forkserver
    return children(server._forkserver_pid)


def children(pid: int) -> list[int]:
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("killed", ExitCode.CANNOT, "rank 1 died (SIGKILL). The other ranks were stopped"),
        ("refuses", ExitCode.BAD_INPUT, "rank 1: --seed: rank 1 has no luck"),
        (
            "breaks",
            ExitCode.FAULT,
            "rank 1: a fault of cgbench: ValueError: odd "
            "(please report it with what --debug prints)",
        ),
    ],
)
def test_a_rank_that_ends_is_told_of_and_not_the_one_it_left(
    how: str, code: ExitCode, line: str
) -> None:
    error = failure(rank_faults.die, how)
    assert (str(error), error.exit_code) == (line, code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_ranks_and_then_does_what_it_does_without_them(
    number: signal.Signals,
) -> None:
    def told(*_: object) -> None:
        raise KeyboardInterrupt(number.name)

    before = signal.signal(number, told)
    try:
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt, match=number.name):
            run_on_ranks(2, "cpu", rank_faults.signal_the_launcher, os.getpid(), number)
        assert time.monotonic() - start < ALL_GONE_S
        assert signal.getsignal(number) is told
    finally:
        signal.signal(number, before)
    assert ranks_left() == []


def test_a_rank_without_memory_in_a_capture() -> None:
    error = failure(rank_faults.run_out_of_memory_in_capture)
    assert str(error).startswith("rank 1: out of memory capturing the iteration graph of 8 req")
    assert error.exit_code is ExitCode.CANNOT


def test_a_rank_that_never_comes_is_named() -> None:
    error = failure(rank_faults.never_come, 2.0)
    assert "rank 0 waited 2 s for the others before the capture of nothing" in str(error)
    assert error.exit_code is ExitCode.CANNOT


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    return folder


def test_what_is_finished_is_kept_and_gone_on_with(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    short = (*FAST, "--iterations", 1, "--max-new-tokens", 4)
    flags = (tiny, *short, "--tp", 2, "--spec-tokens", 1, "--prompts", "random", "--output", out)

    def instead(job: Any) -> None:
        def run(tp: int, device: str, _: Any, *args: Any, **kwargs: Any) -> object:
            return run_on_ranks(tp, device, job, *args, **kwargs)

        monkeypatch.setattr("cgbench.door.run.run_on_ranks", run)

    instead(rank_faults.run_and_die)
    died = cgbench("run", *flags)
    died.refused(3, "rank 1 died (SIGKILL)", "Finished batch sizes are kept", "--resume")
    directory = RunDirectory.open(out)
    assert directory.finished_batch_sizes == {1} and not directory.record.complete

    instead(rank_faults.run_shortly)
    gone_on = cgbench("run", *flags, "--resume")
    assert gone_on.code == 0, gone_on.stderr
    finished = RunDirectory.open(out)
    assert finished.record.complete and finished.finished_batch_sizes == {1, 2}
    assert set(finished.latency()["tp_size"]) == {2}
    shares = finished.samples().query("stage == 'collectives'")
    assert set(shares["batch_size"]) == {1, 2} and (shares["gpu_s"] > 0).all()


def test_heads_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    """One key head of a gated delta net, whose rows two ranks would divide."""
    folder = make_checkpoint(
        tmp_path / "odd", "qwen3_next-hybrid", family=QWEN, linear_num_key_heads=1
    )
    done = cgbench("audit", folder, "--device", "cpu", "--tp", 2, "--prompts", "random")
    done.refused(2, "--tp 2", "the 1 key heads of the linear-attention layers of Qwen3Next")


def test_flags_that_do_not_go_together() -> None:
    cgbench("run", "default", "--processes", 3, "--tp", 2).refused(2, "--processes 3", "--tp 2")


def test_more_ranks_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(DeviceError, match="--tp 2: this machine has 1 CUDA devices"):
        run_on_ranks(2, "cuda", rank_faults.die, "never")


def test_more_ranks_than_a_cpu_is_for() -> None:
    most = max(8, os.cpu_count() or 1)
    with pytest.raises(DeviceError, match=rf"--tp {most + 1}: .* CPU cores, .* up to {most}"):
        run_on_ranks(most + 1, "cpu", rank_faults.die, "never")


def test_multicast_is_off_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for before, after in (("", "0"), ("1", "1")):
        monkeypatch.setenv("NCCL_NVLS_ENABLE", before)
        if not before:
            monkeypatch.delenv("NCCL_NVLS_ENABLE")
        assert str(ranks._own_device("cuda")) == "cuda:1"
        assert os.environ["NCCL_NVLS_ENABLE"] == after


def test_a_machine_without_nvlink_is_noted_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for links, words in (("pcie", ["no NVLink"]), ("nvlink", []), ("unknown", [])):
        monkeypatch.setattr(rank_facts, "links", lambda _, links=links: links)
        assert [note[:9] for note in rank_facts.link_notes(Ranks(0, 2))] == words


def test_no_rank_and_another_number_than_torchrun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="--tp 0"):
        ranks_asked(0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks_asked(None) == ranks_asked(4) == 4
    with pytest.raises(BadInputError, match="--tp 2: torchrun has started 4 ranks"):
        ranks_asked(2)


def test_a_job_s_variables_of_one_rank_are_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks_asked(None) == 1 and ranks_asked(2) == 2
    assert run_on_ranks(2, "cpu", rank_faults.handed) == [Ranks(0, 2), Ranks(1, 2)]


def test_alone_everything_is_its_own_answer() -> None:
    assert ranks.joined() == ranks.ALONE == Ranks(0, 1) and ranks.ALONE.is_first
    assert run_on_ranks(1, "cpu", rank_faults.handed) == [ranks.ALONE]
    assert ranks.agreed(3) == 3 and ranks.gathered(3) == [3]
    assert ranks.first_failure("wrong") == "wrong"
    assert ranks.first_unlike([3], "its numbers") is None
    ranks.barrier("nothing", 0.0)


def test_a_broken_connection_is_the_other_rank_s_end() -> None:
    broken = RuntimeError("[../gloo/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    wrapped = ValueError("cannot be captured")
    wrapped.__cause__ = broken
    assert launch.is_lost(broken) and launch.is_lost(wrapped)
    assert launch.is_lost(RankLostError("rank 0 lost another one before the end"))
    assert not launch.is_lost(RanksError("rank 0 waited")) and not launch.is_lost(
        RuntimeError("shapes differ")
    )
