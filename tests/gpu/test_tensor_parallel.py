"""Two ranks on two devices: captured with their collectives, audited, and gone cleanly."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.errors import RankFailedError
from cgbench.models.heads.families import MIMO, QWEN
from cgbench.parallel.launch import run_on_ranks
from cgbench.rundir.store import RunDirectory
from tests.support.command import cgbench
from tests.support.tiny import add_tokenizer, make_checkpoint
from tests.support.two_devices import (  # noqa: F401
    ON_TWO_DEVICES,
    RANDOM,
    SHORT,
    quick_ranks,
)

pytestmark = ON_TWO_DEVICES

HYBRID = "qwen3_next-hybrid"
EXPERTS = {"moe_intermediate_size": 64}
SHAPES: dict[str, dict[str, int]] = {
    "mimo": {},
    "qwen3_moe": EXPERTS,
    # Each rank has a key head of the delta nets, two value heads, and the one KV head.
    HYBRID: EXPERTS
    | {
        "shared_expert_intermediate_size": 64,
        "num_key_value_heads": 1,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
}


def make_model(folder: Path, kind: str) -> Path:
    shape = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 256}
    family = QWEN if kind == HYBRID else MIMO
    make_checkpoint(folder, kind, family=family, **shape, **SHAPES[kind])
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=SHAPES)
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", request.param)


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
    is_hybrid = "delta nets by heads" in facts["target"]
    assert facts["kv_copies"] == (2 if is_hybrid else 1)


def test_the_audit_passes(model: Path) -> None:
    done = cgbench("audit", model, "--tp", 2, "--prompts", "random", "--max-num-seqs", 4)
    assert done.code == 0, done.stdout + done.stderr


def test_compiled_layers_pass_the_audit(tmp_path: Path) -> None:
    """The recurrence, and the sum behind the delta nets' output, as operators in graphs."""
    folder = make_model(tmp_path / "tiny", HYBRID)
    flags = ("--tp", 2, "--compile", "default", "--max-num-seqs", 4)
    done = cgbench("audit", folder, *flags, *RANDOM)
    assert done.code == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["mimo", HYBRID])
def test_float32_tokens_are_one_device_s(kind: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny", kind)
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
