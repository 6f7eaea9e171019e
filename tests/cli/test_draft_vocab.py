"""A reduced draft vocabulary on the command line: inspect, run with its row, compare, audit."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.support.command import cgbench
from tests.support.tiny import add_tokenizer, make_checkpoint

QUICK = (
    "--device cpu --spec-tokens 3 --batch-sizes 2 --max-new-tokens 8 --context-len 16 --min-time 0 "
    "--max-time 0 --iterations 2"
).split()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    prompts = [{"prompt": text} for text in ("one", "two of them", "three", "and a fourth")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "ranks.json").write_text(json.dumps([*range(200, 100, -1)]))
    return folder


def flags(model: Path, count: int = 40) -> tuple[object, ...]:
    return "--draft-vocab", count, "--draft-vocab-from", model / "ranks.json"


def test_inspect(model: Path) -> None:
    done = cgbench("inspect", model, "--device", "cpu", *flags(model))
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"head          mimo (40 draft tokens of ranks.json), 16 tensors from {model}" in lines
    assert (
        "draft tokens  40 of the target's, of ranks.json: 5,120 bytes (5.1 kB) of rows of its "
        "output matrix, gathered once" in lines
    )
    as_json = cgbench("inspect", model, "--device", "cpu", "--json", *flags(model))
    facts = json.loads(as_json.stdout)["head"]
    names = ("draft_vocab_size", "draft_vocab_source", "output_bytes")
    assert [facts[name] for name in names] == [40, "of ranks.json", 5120]


def test_a_row_of_its_own_that_is_compared_with_no_other(model: Path, tmp_path: Path) -> None:
    where = ("--prompts", model / "prompts.jsonl", "--output")
    reduced, whole = tmp_path / "reduced", tmp_path / "whole"
    done = cgbench("run", model, *QUICK, *where, reduced, *flags(model), "--explain")
    assert done.code == 0, done.stderr
    assert "draft_vocab 40" in done.stdout and "40 draft tokens of ranks.json" in done.stdout
    assert cgbench("run", model, *QUICK, *where, whole).code == 0
    rows = pd.read_csv(reduced / "latency.csv", dtype={"draft_vocab": str})
    told = set(rows[["spec_tokens", "head", "draft_vocab"]].itertuples(index=False, name=None))
    assert told == {(0, "none", "target"), (3, "mimo (40 draft tokens of ranks.json)", "40")}
    record = json.loads((reduced / "run.json").read_text())
    assert record["arguments"]["draft_vocab"] == 40
    elements = {
        (line["stage"], line["what"]): line["num_bytes"]
        for each in record["floor"]["accounts"]
        for line in each["lines"]
        if line["what"] in ("output", "lm_head")
    }
    assert elements["draft_1", "output"] == 40 * 32 * 4
    assert elements["verify", "lm_head"] == 256 * 32 * 4
    compared = cgbench("compare", whole, reduced)
    assert compared.code == 3, compared.stdout
    assert "fingerprint" in compared.stderr + compared.stdout


def test_tokens_are_those_of_the_whole_vocabulary(model: Path, tmp_path: Path) -> None:
    where = ("--prompts", model / "prompts.jsonl", "--save-tokens", "--output")
    told = []
    for name, more in (("reduced", flags(model, 2)), ("whole", ())):
        assert cgbench("run", model, *QUICK, *where, tmp_path / name, *more).code == 0
        lines = (tmp_path / name / "tokens.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        told.append({(row["spec_tokens"], row["request"]): row["token_ids"] for row in rows})
    assert told[0] == told[1]


def test_audit(model: Path) -> None:
    how = "--device cpu --spec-tokens 2 --max-num-seqs 2 --capture-sizes 2 --max-new-tokens 4"
    where = ("--prompts", model / "prompts.jsonl")
    done = cgbench("audit", model, *where, *how.split(), *flags(model))
    assert done.code == 0, done.stdout + done.stderr
    assert "drafts" in done.stdout


def test_stated_lengths_are_not_lowered_and_the_run_says_so(model: Path, tmp_path: Path) -> None:
    where = ("--prompts", model / "prompts.jsonl", "--output", tmp_path / "run")
    done = cgbench("run", model, *QUICK, *where, *flags(model), "--acceptance", "length:2.5")
    assert done.code == 0, done.stderr
    told = "drafts are kept at length:2.5 whatever they are, so what --draft-vocab costs in"
    assert told in done.stdout + done.stderr


def test_refused(model: Path) -> None:
    file = model / "ranks.json"
    cgbench("run", model, *QUICK, "--draft-vocab", 9).refused(
        2, "--draft-vocab 9", "--draft-vocab-from FILE"
    )
    cgbench("run", model, *QUICK, *flags(model, 101)).refused(
        2, "--draft-vocab 101", "ranks 100 tokens"
    )
    cgbench("peers", model, "--engine", "cgbench", *flags(model)).refused(
        2, "--draft-vocab: engines draft any token. Leave out --engine"
    )
    cgbench(
        "run", model, "--device", "cpu", "--spec-tokens", 0, "--draft-vocab-from", file
    ).refused(2, "--draft-vocab-from: --spec-tokens 0 runs no head")
