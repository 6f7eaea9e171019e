"""``cgbench run`` on a device, from the command line to the files."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgbench.cli.app import app
from cgbench.report.store import RunDirectory
from tests.tiny import add_tokenizer, make_checkpoint

pytestmark = pytest.mark.gpu


def test_run_measures_every_scope(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in ("a", "bcd", "e" * 9)))
    out = tmp_path / "run"
    args = "--batch-sizes 1,3 --max-num-seqs 4 --spec-tokens 1,3 --iterations 20 --dtype float32"
    args += " --max-new-tokens 12 --context-len 16 --policy explicit --capture-sizes 1,2"
    paths = [str(folder), "--output", str(out), "--prompts", str(prompts)]
    done = CliRunner().invoke(app, ["run", *paths, *args.split()])
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
