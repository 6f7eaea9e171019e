"""EAGLE-3 heads on the command line: inspect, run with its record, and audit."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.support.command import cgbench
from tests.support.eagle3 import SPECULATORS_3, make_head_folder, make_target
from tests.support.tiny import add_tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("eagle3")
    target = make_target(folder / "target", vocab_size=256)
    add_tokenizer(target)
    prompts = [{"prompt": text} for text in ("one", "two of them", "three", "and a fourth")]
    (target / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    layout = replace(SPECULATORS_3, embedding=None)
    return target, make_head_folder(folder / "spec3", layout, target)


def test_inspect(folders: tuple[Path, Path]) -> None:
    target, head = folders
    done = cgbench("inspect", target, "--head", head, "--device", "cpu")
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"head          eagle3:spec3, 17 tensors from {head}" in lines
    assert (
        "wiring        concat EH, hidden in before layers 1, 3, 6, chain pre-norm, output norm "
        "own, first embedding kept" in lines
    )
    assert "draft tokens  24 of the target's, by d2t" in lines
    assert "head norms    scale by w (the target's scale by w)" in lines
    as_json = cgbench("inspect", target, "--head", head, "--device", "cpu", "--json")
    facts = json.loads(as_json.stdout)["head"]
    assert (facts["aux_layers"], facts["draft_vocab_size"]) == ([1, 3, 6], 24)


def test_run_and_its_record(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target, head = folders
    flags = "--device cpu --spec-tokens 3 --batch-sizes 2 --max-new-tokens 8 --context-len 16"
    quick = "--min-time 0 --max-time 0 --iterations 2 --explain"
    where = ("--head", head, "--prompts", target / "prompts.jsonl", "--output", tmp_path / "run")
    done = cgbench("run", target, *where, *flags.split(), *quick.split())
    assert done.code == 0, done.stderr
    rows = pd.read_csv(tmp_path / "run" / "latency.csv", dtype={"draft_vocab": str})
    drafting = rows[rows["spec_tokens"] > 0]
    assert set(drafting["head"]) == {"eagle3:spec3"} and set(drafting["draft_vocab"]) == {"24"}
    assert set(rows[rows["spec_tokens"] == 0]["draft_vocab"]) == {"target"}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["model"]["head_aux_layers"] == [1, 3, 6]
    assert record["model"]["head_wiring"]["hidden_in"] == "aux"
    accounts = record["floor"]["accounts"]
    lines = {(line["stage"], line["what"]) for each in accounts for line in each["lines"]}
    assert {("draft_1", "proj"), ("draft_1", "output"), ("verify", "lm_head")} <= lines
    assert not {("draft_1", "lm_head"), ("draft_2_3", "proj")} & lines
    assert cgbench("show", tmp_path / "run").code == 0


def test_audit(folders: tuple[Path, Path]) -> None:
    target, head = folders
    flags = "--device cpu --spec-tokens 2 --max-num-seqs 2 --capture-sizes 2 --max-new-tokens 4"
    where = ("--head", head, "--prompts", target / "prompts.jsonl")
    done = cgbench("audit", target, *where, *flags.split())
    assert done.code == 0, done.stdout + done.stderr
    assert "drafts" in done.stdout
