"""Two devices share EAGLE-3 heads, DFlash drafters, MiMo-V2's target and Step-3.5's, captured."""

from pathlib import Path

import pytest

from cgbench.models.heads.families import MIMO_V2, STEP
from cgbench.models.heads.head import HeadForm
from cgbench.rundir.store import RunDirectory
from tests.support import dflash, eagle3
from tests.support.command import cgbench
from tests.support.tiny import add_tokenizer, make_checkpoint
from tests.support.two_devices import (  # noqa: F401
    ON_TWO_DEVICES,
    RANDOM,
    SHORT,
    quick_ranks,
)

pytestmark = ON_TWO_DEVICES

NAMES = ("eagle3", "dflash", "mimo_v2_flash", "step3p5")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """What a command is given to load each."""
    root = tmp_path_factory.mktemp("models")
    eagle, block = eagle3.make_target(root / "eagle"), dflash.make_target(root / "block")
    form, own = HeadForm(dense=True), HeadForm(dense=True, own_output=True)
    # Wide enough for the product of grouped experts in bfloat16.
    shape = {"num_modules": 3, "hidden_size": 64, "moe_intermediate_size": 64}
    mimo = make_checkpoint(root / "mimo", "mimo_v2_flash", family=MIMO_V2, form=form, **shape)
    step = make_checkpoint(root / "step", "step3p5", family=STEP, form=own, **shape)
    for folder in (eagle, block, mimo, step):
        add_tokenizer(folder)
    return {
        "eagle3": (eagle, "--head", _eagle(root, eagle)),
        "dflash": (block, "--head", dflash.make_drafter(root / "drafter", dflash.FULL)),
        "mimo_v2_flash": (mimo,),
        "step3p5": (step,),
    }


def _eagle(root: Path, target: Path) -> Path:
    return eagle3.make_head_folder(root / "head", eagle3.SAFEAILAB, target)


@pytest.mark.parametrize("compiled", ["none", "default"])
@pytest.mark.parametrize("name", NAMES)
def test_the_audit_passes(name: str, compiled: str, models: dict[str, tuple[object, ...]]) -> None:
    flags = ("--tp", 2, "--compile", compiled, "--max-num-seqs", 4)
    done = cgbench("audit", *models[name], *flags, *RANDOM)
    assert done.code == 0, done.stdout + done.stderr


@pytest.mark.parametrize("placement", ["divided", "whole"])
@pytest.mark.parametrize("name", ["eagle3", "dflash"])
def test_every_scope_is_captured_and_measured(
    name: str, placement: str, models: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    flags = ("--spec-tokens", 3, "--batch-sizes", 3, "--tp", 2, "--tp-head", placement)
    done = cgbench("run", *models[name], *flags, *SHORT, *RANDOM, "--output", out)
    assert done.code == 0, done.stderr
    directory = RunDirectory.open(out)
    frame = directory.latency()
    assert set(frame["status"]) == {"ok"}
    assert set(frame.query("scope != 'eager'")["mode"]) == {"graph"}
    assert directory.record.model["tensor_parallel"]["head"] == placement


@pytest.mark.parametrize("name", NAMES)
def test_float32_tokens_are_one_device_s(
    name: str, models: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    hashes = []
    for tp in (1, 2):
        out = tmp_path / f"tp{tp}"
        flags = ("--batch-sizes", 3, "--dtype", "float32", "--tp", tp, "--output", out)
        done = cgbench("run", *models[name], *flags, *SHORT, *RANDOM)
        assert done.code == 0, done.stderr
        hashes.append(RunDirectory.open(out).latency()["tokens_sha256"].tolist())
    assert hashes[0] == hashes[1]
