"""``scripts/compare_peers.py``: rounds taken in turn, rows that say why, and a run on a CPU."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compare_peers
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import ModelRequest, plan_loading
from cgbench.models.presets import PRESETS, Preset
from cgbench.statistics import CONFIDENCE, blocks_estimate
from cgbench.words import Scope
from peers import files, theirs
from peers.rounds import MIN_ROUNDS, WARMUP_ROUNDS, PeerError, Result, Round, measure
from peers.tables import WHAT, markdown
from tests.support.tiny import (
    SHAPE,
    add_tokenizer,
    greedy_reference,
    make_checkpoint,
    reference_model,
)

FACTS: dict[str, Any] = {
    "command": "python scripts/compare_peers.py",
    "model": "preset:tiny (random weights)",
    "head": "mimo (random weights)",
    "dtype": "bfloat16",
    "attention": "triton",
    "acceptance": "synthetic:0.8",
    "spec_tokens": 1,
    "batch_size": 2,
    "context_len": 8,
    "environment": {"gpu": None, "cpu": "a CPU", "torch": "2.13.0", "transformers": "5.23.0"},
}


class Recorded:
    """A peer that notes when it is asked, and may fail."""

    def __init__(self, name: str, log: list[str], fails_at: int | None = None) -> None:
        self.name, self.log, self.fails_at = name, log, fails_at

    def round(self, seed: int) -> Round:
        self.log.append(f"{self.name}{seed}")
        if len([each for each in self.log if each[0] == self.name]) == self.fails_at:
            raise ValueError("a cause\nand its trace")
        return Round(seconds=0.5, steps=10, tokens=20.0)


def test_rounds_are_taken_in_turn_after_every_peer_is_warm() -> None:
    log: list[str] = []
    results = measure(
        {"a": lambda: Recorded("a", log), "b": lambda: Recorded("b", log)},
        seconds=0,
        max_rounds=9,
    )
    warm = [f"{name}{i}" for name in "ab" for i in range(WARMUP_ROUNDS)]
    assert log == warm + [f"{name}{i}" for i in range(MIN_ROUNDS) for name in "ab"]
    assert [len(result.rounds) for result in results] == [MIN_ROUNDS] * 2
    assert results[0].step_ms() == (50.0, 0.0)
    assert results[0].tokens_per_s() == (40.0, 0.0)
    assert results[0].tokens_per_step() == 2.0


def test_an_interval_over_rounds_that_follow_each_other_is_the_gates() -> None:
    seconds = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07]
    row = Result("static", [Round(each, 1000, 1) for each in seconds])
    assert row.step_ms()[1] == blocks_estimate(np.array(seconds)).half_width(CONFIDENCE)


def test_a_peer_that_fails_is_a_row_that_says_why_and_the_others_go_on() -> None:
    log: list[str] = []

    def refuse() -> Recorded:
        raise PeerError("needs a CUDA device")

    makers = {
        "a": lambda: Recorded("a", log),
        "b": lambda: Recorded("b", log, fails_at=WARMUP_ROUNDS + 2),
        "c": refuse,
    }
    a, b, c = measure(makers, seconds=100, max_rounds=4)
    assert len(a.rounds) == 4 and a.reason is None
    assert len(b.rounds) == 1 and b.reason == "ValueError: a cause"
    assert c.rounds == [] and c.reason == "needs a CUDA device"


def test_every_peer_has_its_words() -> None:
    assert set(WHAT) == {*compare_peers.DECODING, *compare_peers.VERIFY}


def test_the_tables() -> None:
    def result(name: str, milliseconds: float, tokens: float) -> Result:
        return Result(name, [Round(milliseconds / 1e3 * 10, 10, tokens * 10)] * 3)

    results = [
        result("iteration", 5, 3),
        result("dynamic", 20, 2),
        Result("static", reason="no"),
        result("verify", 4, 4),
        result("verify-compiled", 7, 4),
    ]
    text = markdown(FACTS, results)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        ["what", "ms / step", "tokens / step", "tok/s", "iteration is", "rounds"],
        [WHAT["iteration"].format(k=1), "5.000 ± 0.000", "3.00", "600.0 ± 0.0", "1.00x", "3"],
        [WHAT["dynamic"], "20.000 ± 0.000", "2.00", "100.0 ± 0.0", "6.00x", "3"],
        [WHAT["static"], "no"],
        ["forward of 2 tokens a request", "ms", "cgbench is", "rounds"],
        [WHAT["verify"], "4.000 ± 0.000", "1.00x", "3"],
        [WHAT["verify-compiled"], "7.000 ± 0.000", "1.75x", "3"],
    ]
    assert "Acceptance is synthetic" in text and "random weights" in text


@pytest.mark.parametrize(
    ("rule", "is_stated"),
    [("golden:glm-5.2-on (borrowed)", True), ("length:2.5", True), ("greedy", False)],
)
def test_acceptance_that_is_stated_is_called_synthetic(rule: str, is_stated: bool) -> None:
    text = markdown({**FACTS, "acceptance": rule}, [])
    assert ("Acceptance is synthetic" in text) == is_stated
    assert f"acceptance {rule}" in text


def test_a_row_says_what_ended_it_and_of_how_many_calls_it_is() -> None:
    rounds = [Round(0.05, 10, 30)] * 4
    text = markdown(FACTS, [Result("static"), Result("dynamic", rounds, "no memory", calls=2)])
    assert "| 4 in 2 calls, then no memory |" in text and "| no round yet | |" in text


def test_a_call_that_is_killed_loses_no_round_and_the_next_one_goes_on(tmp_path: Path) -> None:
    output, log = tmp_path / "mimo-7b.k3", []
    makers = {name: partial(Recorded, name, log) for name in "ab"}
    killed: list[int] = []

    def keep(results: list[Result]) -> None:
        files.write(output, FACTS, named(results))
        killed.extend(len(result.rounds) for result in results)
        if killed[-2:] == [2, 2]:
            raise KeyboardInterrupt

    def named(results: list[Result]) -> list[Result]:
        words = {"a": "iteration", "b": "dynamic"}
        return [replace(each, name=words.get(each.name, each.name)) for each in results]

    with pytest.raises(KeyboardInterrupt):
        measure(makers, seconds=0, max_rounds=5, keep=keep)
    assert {file.name for file in tmp_path.iterdir()} == {"mimo-7b.k3.json", "mimo-7b.k3.md"}
    found = files.read(output, {**FACTS, "command": "another"})
    assert [(row.name, len(row.rounds), row.calls) for row in found] == [
        ("iteration", 2, 1),
        ("dynamic", 2, 1),
    ]
    log.clear()
    more = {name: partial(Recorded, name, log) for name in ("iteration", "static")}
    found[1].reason = "failed"
    rows = measure(more, found, seconds=100, max_rounds=5)
    counts = {row.name: (len(row.rounds), row.calls) for row in rows}
    assert counts == {"iteration": (5, 2), "static": (5, 1), "dynamic": (2, 1)}
    assert [each for each in log if each.startswith("iteration")][WARMUP_ROUNDS:] == [
        f"iteration{i}" for i in (2, 3, 4)
    ]
    with pytest.raises(SystemExit, match="of another batch_size; choose another --output"):
        files.read(output, {**FACTS, "batch_size": 3})


def test_every_k_has_iterations_to_time_and_stays_in_its_kv_rows(tiny: Path) -> None:
    words = [str(tiny), "--device", "cpu", "--spec-tokens", "8", "--context-len", "12"]
    words += ["--new-tokens", "8", "--", "--prompts", "random"]
    setting = compare_peers.Setting(compare_peers.parse_arguments(words))
    try:
        for k in (0, 8):
            peer = compare_peers.ours.Iterations(setting.prepared, k, Scope.EAGER)
            round_ = peer.round(0)
            lengths = setting.deployment.states[k].rows(1).seq_len
            assert round_.steps >= 7 and round_.seconds > 0
            assert int(lengths.max()) + 2 * k <= setting.deployment.spec.cache.room
    finally:
        setting.release()


def test_words_after_two_dashes_are_flags_of_cgbench_run() -> None:
    words = ["preset:mimo-7b", "--spec-tokens", "2", "--", "--attention", "sdpa", "--seed", "7"]
    parsed = compare_peers.run_arguments(compare_peers.parse_arguments(words))
    assert (parsed["model"], parsed["spec_tokens"], parsed["attention"]) == (
        "preset:mimo-7b",
        [2],
        "sdpa",
    )
    assert parsed["seed"] == 7 and list(parsed["capture_sizes"]) == [1]


@pytest.mark.parametrize(
    ("words", "named"),
    [("--peers iteration,bogus", "bogus"), ("--spec-tokens 0", "--spec-tokens")],
)
def test_bad_flags_are_refused(words: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_peers.parse_arguments(words.split())
    assert named in capsys.readouterr().err


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("peers") / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    return folder


def test_a_run_on_a_cpu_writes_both_files(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(tiny), "--device", "cpu", "--context-len", "12", "--new-tokens", "8"]
    words += ["--peers", "iteration,eager,dynamic,static,mtp,verify,verify-static"]
    words += ["--seconds", "0", "--output", str(tmp_path / "out" / "peers")]
    words += ["--", "--prompts", "random"]
    monkeypatch.setattr("sys.argv", ["compare_peers.py", *words])
    compare_peers.main()
    written = json.loads((tmp_path / "out" / "peers.json").read_text())
    rounds = {row["name"]: len(row["rounds"]) for row in written["peers"]}
    assert rounds == {
        **dict.fromkeys(("eager", "dynamic", "verify", "verify-static"), MIN_ROUNDS),
        **dict.fromkeys(("iteration", "static", "mtp"), 0),
    }
    assert written["acceptance"] == "greedy" and written["context_len"] == 12
    text = (tmp_path / "out" / "peers.md").read_text()
    assert "needs a CUDA device" in text and "knows no MTP head" in text


def plan_for(ref: object) -> Any:
    return plan_loading(ModelRequest(str(ref), None, False, torch.device("cpu"), torch.float32))


def test_the_peer_has_the_checkpoints_weights_and_its_steps_are_counted(tiny: Path) -> None:
    model = theirs.load_peer(plan_for(tiny))
    theirs.check_same_weights(model, reference_model(tiny))
    round_ = theirs.Generate(model, [[1, 2, 3], [4, 5, 6]], 8).round(0)
    assert (round_.steps, round_.tokens) == (7, 14) and round_.seconds > 0
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(2)
    with pytest.raises(PeerError, match="not this tool's"):
        theirs.check_same_weights(model, reference_model(tiny))


def test_a_preset_is_drawn_again_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**SHAPE, "model_type": "mimo", "eos_token_id": 3}
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", config))
    plan = plan_for("preset:small")
    model, ours = theirs.load_peer(plan), load_model(plan).target.model
    theirs.check_same_weights(model, ours)
    for name, weight in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_the_static_forward_is_the_models_own_and_can_be_repeated(tiny: Path) -> None:
    """Set back, it must give the same: the logits of the whole sequence without any cache."""
    model = theirs.load_peer(plan_for(tiny))
    prompt = list(range(20, 32))
    verify = theirs.StaticVerify(model, [prompt], 4, calls=2, compiled=False)
    verify.round(0)
    for layer in verify._cache.layers:
        layer.cumulative_length.fill_(len(prompt))
    with torch.no_grad():
        got = verify._forward()
        whole = model(torch.tensor([prompt + prompt[:4]])).logits[:, -4:]
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


def test_generate_is_plain_greedy_decoding(tiny: Path) -> None:
    """What the peer times is what the rest of the tests hold decoding against."""
    model = theirs.load_peer(plan_for(tiny))
    expected = greedy_reference(reference_model(tiny), [[1, 2, 3]], 8)
    assert greedy_reference(model, [[1, 2, 3]], 8) == expected
