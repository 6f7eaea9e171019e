"""Two ranks on two devices: captured with their collectives, audited, and gone cleanly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.errors import RankFailedError
from cgbench.parallel.launch import run_on_ranks
from cgbench.rundir.store import RunDirectory
from tests.support.command import cgbench
from tests.support.forkserver import forked_ranks
from tests.support.tiny import add_tokenizer, make_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

SHORT = ("--iterations", 8, "--max-time", 0, "--max-new-tokens", 12, "--context-len", 16)
RANDOM = ("--prompts", "random")


@pytest.fixture(scope="module", autouse=True)
def quick_ranks() -> Iterator[None]:
    with forked_ranks():
        yield


@pytest.fixture(scope="module", params=["mimo", "qwen3_moe"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 256}
    experts = {"moe_intermediate_size": 64} if request.param == "qwen3_moe" else {}
    folder = make_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny", request.param, **shape, **experts
    )
    add_tokenizer(folder)
    return folder


def test_numbers_are_exchanged_without_nccl() -> None:
    from tests.support.exchanges import exchange

    told = run_on_ranks(2, "cuda", exchange)
    for each in told:
        assert each.why_not is None and each.gathers and not each.wrong
        # Rounded once, of parts that are exact.
        assert each.error < 0.5
        assert each.sums == told[0].sums


def test_the_collectives_alone_wait_for_sums_that_are_under_way() -> None:
    from tests.support.exchanges import sums_of_two_streams

    assert run_on_ranks(2, "cuda", sums_of_two_streams) == [0, 0]


@pytest.mark.parametrize("size", [64, 1_000_000])
def test_a_rank_that_never_comes_ends_the_wait_for_its_numbers(size: int) -> None:
    from tests.support.exchanges import wait_in_vain

    with pytest.raises(RankFailedError, match=r"rank 0: .*CUDA error"):
        run_on_ranks(2, "cuda", wait_in_vain, size)


@pytest.mark.parametrize("head", ["divided", "whole"])
def test_every_scope_is_captured_and_measured(model: Path, head: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--spec-tokens", 3, "--batch-sizes", 3, "--tp", 2, "--tp-head", head)
    done = cgbench("run", model, *flags, *SHORT, *RANDOM, "--output", out)
    assert done.code == 0, done.stderr
    directory = RunDirectory.open(out)
    frame = directory.latency()
    assert set(frame["tp_size"]) == {2} and set(frame["status"]) == {"ok"}
    assert set(frame.query("scope != 'eager'")["mode"]) == {"graph"}
    assert (directory.samples().query("stage == 'collectives'")["gpu_s"] > 0).all()
    facts = directory.record.model["tensor_parallel"]
    assert (facts["backend"], facts["head"]) == ("nccl", head)
    assert facts["few_numbers"].startswith("a kernel of cgbench's own")
    assert len(facts["collectives"]) == len(frame)


def test_the_audit_passes(model: Path) -> None:
    done = cgbench("audit", model, "--tp", 2, "--prompts", "random", "--max-num-seqs", 4)
    assert done.code == 0, done.stdout + done.stderr


def test_float32_tokens_are_one_device_s(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    hashes = []
    for tp in (1, 2):
        out = tmp_path / f"tp{tp}"
        flags = ("--batch-sizes", 3, "--dtype", "float32", "--tp", tp, "--output", out)
        done = cgbench("run", folder, *flags, *SHORT, *RANDOM)
        assert done.code == 0, done.stderr
        hashes.append(RunDirectory.open(out).latency()["tokens_sha256"].tolist())
    assert hashes[0] == hashes[1]


def test_more_ranks_than_devices() -> None:
    count = torch.cuda.device_count()
    done = cgbench("run", "default", "--device", "cuda", "--tp", count + 1)
    done.refused(3, f"--tp {count + 1}", f"{count} CUDA devices")
