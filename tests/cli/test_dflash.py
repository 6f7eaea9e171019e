"""DFlash drafters on the command line: inspect, run with its record, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.support.command import cgbench
from tests.support.dflash import FULL, make_drafter, make_target
from tests.support.tiny import add_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dflash")
    target = make_target(folder / "target", vocab_size=256)
    add_tokenizer(target)
    prompts = [{"prompt": text} for text in ("one", "two of them", "three", "and a fourth")]
    (target / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return target, make_drafter(folder / "b8", FULL)


def test_inspect(folders: tuple[Path, Path]) -> None:
    target, drafter = folders
    done = cgbench("inspect", target, "--head", drafter, "--device", "cpu")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"head          dflash:b8 (parallel), 25 tensors from {drafter}" in lines
    assert (
        "modules       1, parallel: one forward of k + 1 positions makes every draft, k up to 7"
        in lines
    )
    assert (
        "wiring        context of states before layers 1, 2, 3, mask token 63, output norm own"
        in lines
    )
    as_json = cgbench("inspect", target, "--head", drafter, "--device", "cpu", "--json")
    facts = json.loads(as_json.stdout)["head"]
    assert (facts["aux_layers"], facts["block_size"], facts["mask_token"]) == ([1, 2, 3], 8, 63)


def test_run_and_its_record(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target, drafter = folders
    flags = "--device cpu --spec-tokens 3 --batch-sizes 2 --max-new-tokens 8 --context-len 16"
    quick = "--min-time 0 --max-time 0 --iterations 2 --explain"
    where = ("--head", drafter, "--prompts", target / "prompts.jsonl", "--output", tmp_path / "run")
    done = cgbench("run", target, *where, *flags.split(), *quick.split())
    assert done.code == 0, done.stderr
    rows = pd.read_csv(tmp_path / "run" / "latency.csv")
    drafting = rows[rows["spec_tokens"] > 0]
    assert set(drafting["head"]) == {"dflash:b8 (parallel)"}
    assert (drafting["draft_p50_ms"] > 0).all()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model"]["mtp_modules"] == "parallel: one forward makes every draft"
    assert record["model"]["head_wiring"] == {"hidden_in": "aux", "drafts": "parallel"}
    assert record["model"]["head_aux_layers"] == [1, 2, 3]
    samples = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    drafts = {stage for stage in samples["stage"].unique() if stage.startswith("draft")}
    assert drafts == {"draft_1"}
    lines = [line for each in record["floor"]["accounts"] for line in each["lines"]]
    assert {line["stage"] for line in lines} == {"verify", "draft_1"}
    assert cgbench("show", tmp_path / "run").code == 0


def test_more_drafts_than_its_block_has(folders: tuple[Path, Path]) -> None:
    target, drafter = folders
    flags = "--device cpu --spec-tokens 8 --max-num-seqs 1 --max-new-tokens 6"
    where = ("--head", drafter, "--prompts", target / "prompts.jsonl")
    done = cgbench("audit", target, *where, *flags.split())
    assert done.code == 2
    assert done.stderr.splitlines() == [
        "error: --spec-tokens 8: the DFlash drafter was trained on blocks of 8 positions, so it "
        "makes 7 drafts at most"
    ]
