"""``cgbench audit`` around its checks, which stand-ins replace: verdicts, exit codes, what is
printed and what ``--repro`` writes."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cgbench.checks.findings import (
    Difference,
    Finding,
    Where,
    holds,
    not_run,
    wrong,
)
from cgbench.checks.repro import read_inputs
from cgbench.engine.acceptance import Greedy
from cgbench.engine.runner import EagerRunner
from cgbench.measure import setup
from cgbench.words import Scope
from tests.support.command import Done, cgbench
from tests.support.tiny import greedy_reference, reference_model

NO_GRAPHS = "no graphs here: CUDA graphs need a CUDA device, so only scope eager is measured"

TOKENS = torch.arange(12).view(3, 4)

DIFFERENCE = Difference(
    "tokens differ from plain greedy decoding",
    Where(Scope.PHASE, spec_tokens=3, bucket=8, batch_size=5, row=2, position=17),
    expected=93,
    got=17,
    expected_logit=12.25,
    got_logit=4.5,
    # A view of a larger buffer, as the device state's tensors are.
    inputs={"last": TOKENS[:2, 1], "hidden": torch.ones(2, 4, dtype=torch.bfloat16)},
)


@dataclass(frozen=True)
class StandIn:
    name: str
    title: str
    finding: Callable[[Any], Finding]

    def run(self, subject: Any) -> Finding:
        return self.finding(subject)


GOOD = StandIn("equality", "tokens are equal", lambda _: holds("equality", compared=1200))
BAD = StandIn("parity", "drafts", lambda _: wrong("parity", DIFFERENCE, margin=7.75, noise=0.1))
LEFT_OUT = StandIn("hygiene", "graphs", lambda _: not_run("hygiene", "needs a CUDA device"))


@pytest.fixture
def audit(tiny: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    def run(checks: list[StandIn], *args: object) -> Done:
        monkeypatch.setitem(sys.modules, "cgbench.checks.catalogue", SimpleNamespace(CHECKS=checks))
        monkeypatch.setattr("cgbench.checks.subject.make_subject", lambda *given: given)
        return cgbench("audit", tiny, "--device", "cpu", "--prompts", prompts, *args)

    return run


def test_all_hold(audit: Callable[..., Done]) -> None:
    done = audit([GOOD, LEFT_OUT])
    assert done.code == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert rows["equality"].split()[:2] == ["equality", "holds"]
    assert GOOD.title in rows["equality"] and "compared 1200" in rows["equality"]
    assert "not run" in rows["hygiene"] and "needs a CUDA device" in rows["hygiene"]
    assert "2 checks" in done.stdout and "1 hold, 0 wrong, 1 not run" in done.stdout
    assert done.stderr.splitlines() == [NO_GRAPHS, "equality: holds", "hygiene: not run"]


def test_an_audit_that_made_no_check_is_not_exit_code_0(audit: Callable[..., Done]) -> None:
    done = audit([LEFT_OUT], "--json")
    assert done.code == 3 and json.loads(done.stdout)["verdict"] == "not run"


def test_something_wrong_is_exit_code_1_and_says_where(audit: Callable[..., Done]) -> None:
    done = audit([GOOD, BAD])
    assert done.code == 1 and "error" not in done.stderr
    assert "WRONG" in done.stdout and "margin 7.75, noise 0.1" in done.stdout
    place = "phase, k 3, bucket 8, batch size 5, row 2, position 17"
    said = " ".join(done.stdout.split())
    assert f"{place}: {DIFFERENCE.text}; expected 93 (logit 12.25); got 17 (logit 4.5)" in said


def test_json_is_all_that_a_script_reads(audit: Callable[..., Done], tiny: Path) -> None:
    nan = StandIn("limits", "limits", lambda _: holds("limits", margin=float("inf"), ks=(1, 3)))
    done = audit([BAD, nan, LEFT_OUT], "--json", "--seed", "5", "--spec-tokens", "1,3")
    assert done.code == 1
    answer = json.loads(done.stdout)
    assert answer["verdict"] == "wrong" and answer["seconds"] > 0
    assert answer["arguments"]["seed"] == 5 and answer["arguments"]["spec_tokens"] == [1, 3]
    assert answer["model"]["fingerprint"] and answer["environment"]["torch"]
    assert [plan["spec_tokens"] for plan in answer["plans"]] == [0, 1, 3]
    parity, limits, hygiene = answer["findings"]
    assert parity["figures"] == {"margin": 7.75, "noise": 0.1}
    assert parity["difference"]["where"] == {
        "scope": "phase",
        "spec_tokens": 3,
        "bucket": 8,
        "batch_size": 5,
        "row": 2,
        "position": 17,
    }
    assert (parity["difference"]["expected"], parity["difference"]["got"]) == (93, 17)
    assert parity["difference"]["inputs"] == {"last": [2], "hidden": [2, 4]}
    assert limits["figures"] == {"margin": "inf", "ks": [1, 3]} and limits["difference"] is None
    assert (hygiene["verdict"], hygiene["reason"]) == ("not run", "needs a CUDA device")


def test_only_the_checks_asked_for_run(audit: Callable[..., Done]) -> None:
    done = audit([GOOD, BAD, LEFT_OUT], "--checks", "equality,hygiene")
    assert done.code == 0 and "parity" not in done.stdout
    audit([GOOD, BAD], "--checks", "speed").refused(2, "--checks speed", "equality,parity")


def test_what_a_check_is_given(audit: Callable[..., Done]) -> None:
    given: list[Any] = []

    def look(subject: Any) -> Finding:
        given.append(subject)
        return holds("look")

    assert audit([StandIn("look", "a look", look)], "--seed", "7").code == 0
    (deployment, prompts, max_new_tokens, seed), *rest = given
    assert (len(prompts), max_new_tokens, seed) == (3, 16, 7) and not rest
    assert deployment.options.max_batch_size == 8 and isinstance(deployment.spec.accept, Greedy)
    assert set(deployment.runners) == {(0, Scope.EAGER), (3, Scope.EAGER)}


def test_repro_writes_what_the_failure_was_found_on(
    audit: Callable[..., Done], tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "repro"
    done = audit([GOOD, BAD], "--repro", path, "--seed", "3")
    assert done.code == 1 and str(path) in done.stderr.splitlines()[-1]
    assert {f.name for f in path.iterdir()} == {"README.txt", "parity.json", "parity.safetensors"}
    found = json.loads((path / "parity.json").read_text())
    assert found["finding"]["difference"]["where"]["row"] == 2
    assert found["arguments"]["seed"] == 3 and found["model"]["fingerprint"]
    assert found["environment"]["transformers"]
    tensors = read_inputs(path, "parity")
    assert {name: list(t.shape) for name, t in tensors.items()} == found["finding"]["difference"][
        "inputs"
    ]
    assert all(torch.equal(t, DIFFERENCE.inputs[name]) for name, t in tensors.items())
    command = next(
        line.strip()
        for line in (path / "README.txt").read_text().splitlines()
        if line.strip().startswith("cgbench audit")
    )
    words = shlex.split(command)
    assert words[:3] == ["cgbench", "audit", str(tiny)]
    assert words[words.index("--prompts") + 1] == str(prompts)
    again = cgbench(*words[1:], "--json")  # the command is one: same flags, same answer
    assert again.code == 1
    assert json.loads(again.stdout)["arguments"] == found["arguments"]


def test_a_planted_fault_is_found_and_shown_again_from_its_repro(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real check on a real fault, one that only batches of two at k = 3 have. What was written
    is enough for transformers alone to tell the right tokens from those that were got."""
    real = EagerRunner.step

    def step(self: EagerRunner, batch_size: int) -> None:
        real(self, batch_size)
        if (self.state.spec_tokens, batch_size) == (3, 2):
            self.state.full.out[1, 0] = (self.state.full.out[1, 0] + 1) % 256

    monkeypatch.setattr(EagerRunner, "step", step)
    path = tmp_path / "repro"
    args = ("--device", "cpu", "--prompts", prompts, "--max-num-seqs", "2", "--checks", "equality")
    done = cgbench("audit", tiny, *args, "--max-new-tokens", "8", "--repro", path)
    assert done.code == 1, done.stderr
    found = json.loads((path / "equality.json").read_text())["finding"]["difference"]
    where = found["where"]
    assert (where["spec_tokens"], where["batch_size"], where["row"]) == (3, 2, 1)
    tensors = {name: ids.tolist() for name, ids in read_inputs(path, "equality").items()}
    expected, got = tensors["expected_ids"], tensors["got_ids"]
    (plain,) = greedy_reference(reference_model(tiny), [tensors["prefix_ids"]], len(expected))
    assert expected == plain
    assert next(i for i, token in enumerate(got) if token != plain[i]) == where["position"]
    assert (plain[where["position"]], got[where["position"]]) == (found["expected"], found["got"])
    assert found["expected_logit"] > found["got_logit"]


def test_repro_of_nothing_wrong_writes_nothing(audit: Callable[..., Done], tmp_path: Path) -> None:
    assert audit([GOOD], "--repro", tmp_path / "repro").code == 0
    assert not (tmp_path / "repro").exists()


def test_a_repro_that_fails_does_not_hide_the_verdict(
    audit: Callable[..., Done], tmp_path: Path
) -> None:
    path = tmp_path / "repro"

    def look(_: Any) -> Finding:
        path.write_text("in the way")
        return BAD.finding(None)

    done = audit([StandIn("parity", "drafts", look)], "--repro", path)
    assert done.code == 1 and "WRONG" in done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"error: --repro {path}: cannot be written")


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(setup, "load", load)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_repro_folder_in_use_is_refused_first(audit: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    audit([GOOD], "--repro", tmp_path).refused(2, "--repro", str(tmp_path), "empty")
    audit([GOOD], "--repro", tmp_path / "file").refused(2, "--repro", "empty")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_repro_folder_that_cannot_be_made_is_refused_first(
    audit: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for name, problem in (("file/repro", "Not a directory"), ("r" * 300, "File name too long")):
        audit([GOOD], "--repro", tmp_path / name).refused(2, f"--repro {tmp_path / name}", problem)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--max-num-seqs 0", ("--max-num-seqs 0", "1 to 65536")),
        ("--max-num-seqs 1000000000", ("--max-num-seqs 1000000000", "1 to 65536")),
        ("--spec-tokens 17", ("--spec-tokens 17", "0 to 16")),
        ("--scopes x", ("--scopes x", "eager,phase,iteration")),
        ("--max-new-tokens 1", ("--max-new-tokens 1", "at least 2")),
        ("--capture-sizes 9", ("--capture-sizes", "9 requests", "--max-num-seqs")),
        ("--attention triton", ("--attention triton", "--device cuda")),
    ],
)
def test_a_bad_flag_is_named_before_anything_is_loaded(
    audit: Callable[..., Done], arguments: str, words: tuple[str, ...]
) -> None:
    audit([GOOD], *arguments.split()).refused(2, *words)


def test_a_check_that_breaks_is_one_line_and_exit_code_3(audit: Callable[..., Done]) -> None:
    def broken(_: Any) -> Finding:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    done = audit([StandIn("equality", "tokens", broken)])
    assert done.code == 3 and done.stderr.splitlines()[-1].startswith("error: OutOfMemoryError")
