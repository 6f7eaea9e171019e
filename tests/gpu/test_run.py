"""``cgbench run`` on a device, from the command line to the files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgbench.cli.app import app
from cgbench.engine.generation import Generated
from cgbench.engine.generation import generate as real_generate
from cgbench.engine.runner import GraphRunner, Runner
from cgbench.measure import group
from cgbench.rundir.store import RunDirectory
from cgbench.words import Scope
from tests.support.tiny import add_tokenizer, make_checkpoint

pytestmark = pytest.mark.gpu


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """A tiny model and prompts for it, as arguments."""
    folder = make_checkpoint(tmp_path / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in ("a", "bcd", "e" * 9)))
    return [str(folder), "--prompts", str(prompts)]


def test_run_measures_every_scope(model: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = "--batch-sizes 1,3 --max-num-seqs 4 --spec-tokens 1,3 --iterations 20 --dtype float32"
    args += " --max-new-tokens 12 --context-len 16 --policy explicit --capture-sizes 1,2"
    done = CliRunner().invoke(app, ["run", *model, "--output", str(out), *args.split()])
    assert done.exit_code == 0, done.output
    directory = RunDirectory.open(out)
    frame = directory.latency()
    assert len(frame) == 2 * 3 * 3  # batch sizes, scopes, k
    modes = frame.set_index(["scope", "batch_size"])["mode"].to_dict()
    assert modes["iteration", 1] == modes["phase", 1] == "graph"
    assert modes["iteration", 3] == modes["phase", 3] == modes["eager", 1] == "eager"
    assert frame.groupby("batch_size")["tokens_sha256"].nunique().tolist() == [1, 1]
    assert (frame["iteration_p50_ms"] > 0).all() and (frame["verify_p50_ms"] > 0).all()
    assert (frame.loc[frame["spec_tokens"] > 0, "draft_p50_ms"] > 0).all()
    assert (frame["host_gap_p50_ms"].notna()).all()
    ledger = directory.capture()
    # k = 0: one graph a bucket in either scope; k > 0: three and one.
    assert len(ledger) == 2 * (1 + 1) + 2 * 2 * (3 + 1)
    assert (ledger["num_tokens"] == ledger["bucket"] * (ledger["spec_tokens"] + 1)).all()
    assert directory.record.capture["role"] == "mixed"
    assert directory.record.complete


@pytest.mark.parametrize(("bucket", "words"), [(4, "was computed too"), (1, "was not computed")])
def test_a_cell_that_replays_another_bucket_has_no_latency(
    model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: int, words: str
) -> None:
    real = GraphRunner.step

    def step(self: GraphRunner, batch_size: int) -> None:
        if self.scope is Scope.ITERATION and batch_size == 2:
            self.graphs.replay(bucket)
        else:
            real(self, batch_size)

    # Of the timed pass alone: where a request is never computed, generating would not end.
    monkeypatch.setattr(GraphRunner, "step", step)
    monkeypatch.setattr(group, "generate", generate_with(real, step))
    out = tmp_path / "run"
    args = "--batch-sizes 1,2 --max-num-seqs 4 --spec-tokens 3 --iterations 20 --dtype bfloat16"
    args += " --max-new-tokens 12 --context-len 16 --policy explicit --capture-sizes 1,2,4"
    done = CliRunner().invoke(app, ["run", *model, "--output", str(out), *args.split()])
    assert done.exit_code == 1, done.output
    assert words in done.output and "iteration k=3, batch size 2" in done.output
    frame = RunDirectory.open(out).latency()
    wrong = (frame["scope"] == "iteration") & (frame["batch_size"] == 2)
    assert set(frame.loc[wrong, "status"]) == {"audit_failed"}
    assert set(frame.loc[~wrong, "status"]) == {"ok"}
    assert frame.loc[wrong, ["iteration_p50_ms", "speedup_vs_eager"]].isna().all(axis=None)
    assert frame.loc[~wrong, "iteration_p50_ms"].notna().all()


Step = Callable[[GraphRunner, int], None]


def generate_with(during: Step, after: Step) -> Callable[[Runner, list[int]], Generated]:
    """The decode loop with ``during`` as the graph runner's step."""

    def generate(runner: Runner, first_tokens: list[int]) -> Generated:
        GraphRunner.step = during
        try:
            return real_generate(runner, first_tokens)
        finally:
            GraphRunner.step = after

    return generate


def test_audit_holds_on_a_device(model: list[str], tmp_path: Path) -> None:
    args = "--max-num-seqs 4 --spec-tokens 1,3 --dtype float32 --max-new-tokens 12 --json"
    done = CliRunner().invoke(app, ["audit", *model, *args.split()])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert {finding["verdict"] for finding in answer["findings"]} == {"holds"}
    assert "hygiene" in {finding["check"] for finding in answer["findings"]}
