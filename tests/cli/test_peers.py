"""``cgbench peers``: both files, JSON, exit codes, and what is refused before loading."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.cli.peers import exit_code
from cgbench.engines.peer_rounds import MIN_ROUNDS, Keep
from cgbench.engines.peer_rows import PEERS, Result, Round
from cgbench.errors import ExitCode
from cgbench.request.peers_request import PeersRequest
from tests.support.command import Done, cgbench

FAST = ("--device", "cpu", "--context-len", 12, "--max-new-tokens", 8, "--seconds", 0)


def peers(tiny: Path, names: str, *more: object) -> Done:
    return cgbench("peers", tiny, *FAST, "--prompts", "random", "--peers", names, *more)


def test_a_run_on_a_cpu_writes_both_files_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "peers"
    names = "iteration,eager,dynamic,static,mtp,verify,verify-static"
    done = peers(tiny, names, "--output", output)
    # Some that are named cannot be measured here.
    assert done.code == 3
    written = json.loads((tmp_path / "out" / "peers.json").read_text())
    rounds = {row["name"]: len(row["rounds"]) for row in written["peers"]}
    assert rounds == {
        **dict.fromkeys(("eager", "dynamic", "verify", "verify-static"), MIN_ROUNDS),
        **dict.fromkeys(("iteration", "static", "mtp"), 0),
    }
    assert written["acceptance"] == "greedy" and written["context_len"] == 12
    assert written["command"].startswith("cgbench peers ")
    text = (tmp_path / "out" / "peers.md").read_text()
    assert "needs a CUDA device" in text and "knows no MTP head" in text
    assert done.stdout == text
    assert "eager: ready in " in done.stderr and "round 3 of at most 12" in done.stderr
    assert "static: not measured: reduce-overhead is CUDA graphs" in done.stderr
    again = peers(tiny, "verify", "--output", output, "--rounds", MIN_ROUNDS + 1, "--json")
    assert again.code == 0
    rows = {row["name"]: row for row in json.loads(again.stdout)["peers"]}
    assert (len(rows["verify"]["rounds"]), rows["verify"]["calls"]) == (MIN_ROUNDS + 1, 2)
    assert len(rows["eager"]["rounds"]) == MIN_ROUNDS and rows["eager"]["step_p50_ms"] > 0
    assert rows["static"]["step_p50_ms"] is None
    other = peers(tiny, "verify", "--output", output, "--spec-tokens", 2)
    other.refused(2, str(output) + ".json", "of another spec_tokens", "--output")


def bad(arguments: str, *words: str) -> Any:
    return pytest.param(arguments.split(), words, id=arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        bad("--peers iteration,bogus", "--peers bogus", "verify-compiled"),
        bad("--spec-tokens 0", "--spec-tokens 0", "at least 1"),
        bad("--spec-tokens 17", "--spec-tokens 17", "at most 16"),
        bad("--batch-size 0", "--batch-size 0", "1 to 65536"),
        bad("--context-len 0", "--context-len 0"),
        bad("--max-new-tokens 1", "--max-new-tokens 1", "at least 2"),
        bad("--max-num-batched-tokens 0", "--max-num-batched-tokens 0", "at least 1"),
        bad("--rounds 0", "--rounds 0"),
        bad("--seconds -1", "--seconds -1"),
        bad("--seconds nan", "--seconds nan"),
        bad("--seconds inf", "--seconds inf"),
        bad("--seed -1", "--seed -1"),
        bad("--acceptance x", "--acceptance x"),
        bad("--output .", "--output ."),
        bad("-- --compile default", "--compile"),
    ],
)
def test_a_bad_flag_is_named_and_nothing_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: tuple[str, ...]
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("cgbench.measure.setup.load", load)
    cgbench("peers", "default", "--device", "cpu", *arguments).refused(2, *words)


def test_help_names_every_peer() -> None:
    words = cgbench("peers", "--help").stdout.replace("│", " ").split()
    named = {word.strip(",.()") for word in words}
    assert {name.removesuffix("-k0") for name in PEERS} <= named


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ([], ExitCode.OK),
        (["eager"], ExitCode.OK),
        (["eager", "static"], ExitCode.CANNOT),
        (["eager", "batch"], ExitCode.CANNOT),
    ],
)
def test_what_is_named_must_be_measured(named: list[str], code: ExitCode) -> None:
    rounds = [Round(0.5, 10, 20.0)]
    results = [
        Result("eager", rounds),
        Result("static", reason="needs a CUDA device"),
        Result("batch", rounds, reason="no memory"),
    ]
    asked = PeersRequest(peers=tuple(named))
    assert exit_code(asked, results) is code
    assert exit_code(asked, results[1:]) is ExitCode.CANNOT


@pytest.mark.parametrize("rounds", [[], [Round(0.5, 10, 20.0)]])
def test_an_interruption_says_what_is_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[Round]
) -> None:
    def interrupt(*_: object, keep: Keep, **__: object) -> None:
        if rounds:
            keep([Result("eager", rounds)])
        raise KeyboardInterrupt

    monkeypatch.setattr("cgbench.engines.peer_rounds.measure", interrupt)
    done = peers(tiny, "eager", "--output", tmp_path / "x")
    assert done.code == 130
    line = f"interrupted. Rounds taken are in {tmp_path / 'x.json'}. The same command goes on"
    assert (line in done.stderr) == bool(rounds)


def test_the_graphs_are_freed_where_a_comparison_fails(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[str] = []

    def fail(*_: object) -> None:
        raise ValueError("no engines")

    monkeypatch.setattr("cgbench.door.peers._engines", fail)
    monkeypatch.setattr(
        "cgbench.engine.deployment.Deployment.release", lambda deployment: freed.append("all")
    )
    assert peers(tiny, "eager").code == 70
    assert freed == ["all"]
