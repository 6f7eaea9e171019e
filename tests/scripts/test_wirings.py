"""``scripts/trials/wirings.py``: the right wiring is found, and ties are reported as ties."""

import json
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wirings
from cgbench.engine.backends import resolve_backend
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.models.heads.families import DEEPSEEK, MIMO, MIMO_V2, QWEN, STEP, HeadFamily
from cgbench.models.heads.head_wiring import wiring_of
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading
from cgbench.request.parts import HeadWiring
from tests.support.eagle3 import SAFEAILAB, make_head_folder, make_target
from tests.support.own_modules import make_own_modules
from tests.support.tiny import (
    add_tokenizer,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)
from wiring_study.drafting import Drafter, Starts, find_starts, write_texts
from wiring_study.evidence import Judged, judge, paired_estimate
from wiring_study.report import conclusions, markdown
from wiring_study.rewired import VALUES, Rewirable, load_rewirable

CPU = torch.device("cpu")
SDPA = resolve_backend("auto", CPU)
SIZE = 256
SUCCESSOR = [(5 * token + 3) % SIZE for token in range(SIZE)]
K = 3
ALL = list(VALUES)
BUT_FIRST_EMBED = "concat,hidden,chain,out-norm,norm-form,feed"


def signs(period: int) -> torch.Tensor:
    """Weights of a norm: -1 for some features, 1 for the others."""
    return torch.where(torch.arange(SIZE) % period == 0, -1.0, 1.0)


def make_signed(folder: Path, *, concat: str = "HE") -> Path:
    """A checkpoint whose head is right as MiMo's is wired, with its projection for ``concat``.

    Token t is followed by ``SUCCESSOR[t]``. The head reads the hidden state alone. The target's
    norm turns the signs of some features, and the head's output norm those of others. A state that
    is read on the wrong side of a norm has the wrong sign, and so have the logits.
    """
    make_checkpoint(folder, "mimo", vocab_size=SIZE, hidden_size=SIZE)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = torch.zeros_like(tensor)
        elif "norm" in name:
            tensors[name] = torch.ones_like(tensor)
    step = torch.zeros(SIZE, SIZE)
    step[SUCCESSOR, range(SIZE)] = 1.0
    of_target, of_head = signs(3), signs(2)
    tensors["model.embed_tokens.weight"] = torch.eye(SIZE)
    tensors["model.norm.weight"] = of_target
    tensors["model.mtp_layers.0.final_layernorm.weight"] = of_head
    tensors["lm_head.weight"] = step * of_target
    reads = (of_target * of_head)[:, None] * step * of_target
    halves = (reads, torch.zeros_like(reads))
    tensors["model.mtp_layers.0.input_proj.weight"] = torch.cat(
        halves if concat == "HE" else halves[::-1], dim=1
    )
    save_file({n: t.contiguous() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    add_tokenizer(folder)
    lines = (json.dumps({"prompt": f"text {letter}"}) for letter in "abcdefghijklmnop")
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signed(tmp_path_factory.mktemp("right"))


@pytest.fixture(scope="module")
def disputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_signed(tmp_path_factory.mktemp("disputed"), concat="EH")


def study_of(folder: Path, *flags: str) -> int:
    prompts = ("--prompts", str(folder / "prompts.jsonl"))
    return wirings.main(
        [str(folder), "--max-new-tokens", "12", "--device", "cpu", *prompts, *flags]
    )


def judged_of(rewirable: Rewirable, prompts: list[list[int]], points: list[str]) -> Judged:
    starts = starts_of(rewirable, prompts)
    every = rewirable.wirings(points, K)
    drafter = Drafter(rewirable.model, SDPA, starts, 64)
    accepted = []
    for wiring in every:
        rewirable.apply(wiring)
        accepted.append(drafter.accepted())
    return judge(every, accepted, starts.prompt_of, K)


def starts_of(rewirable: Rewirable, prompts: list[list[int]], tokens: int = 25) -> Starts:
    how = {"max_new_tokens": tokens, "batch_size": 2, "max_num_tokens": 64}
    return find_starts(write_texts(rewirable.model, SDPA, prompts, **how), K)


def loading(folder: Path, **wiring: str) -> Loading:
    return Loading(str(folder), None, True, CPU, torch.float32, wiring=HeadWiring(**wiring))


def test_the_right_wiring_wins(right: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 40 wirings, the one that the checkpoint was built for."""
    assert study_of(right, "--vary", BUT_FIRST_EMBED) == 0
    out = capsys.readouterr().out
    assert "4.00 (" in out
    assert (
        "Winner: --head-concat HE --head-hidden post --chain-norm post --head-out-norm own "
        "--head-norm-form plain." in out
    )
    assert "The declared wiring is the winner." in out


def test_a_declared_wiring_that_is_wrong_is_behind(
    disputed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "wirings.md"
    assert study_of(disputed, "--vary", "concat,chain", "--output", str(output)) == 1
    said = "The declared wiring is behind the best (--head-concat EH --chain-norm post) by 3.00"
    assert said in capsys.readouterr().out
    text = output.read_text()
    assert said in text
    row = next(line for line in text.splitlines() if line.startswith("| declared |"))
    assert row.startswith("| declared | HE | post | 1.00 (1.00 to ")


def test_a_tie_is_reported_as_a_tie(right: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head reads no embedding, so it does not matter what is at position 0."""
    assert study_of(right, "--vary", "hidden,first-embed") == 0
    out = capsys.readouterr().out
    assert "No winner: 2 wirings are tied" in out
    assert "2 of them kept the same number of drafts at every start." in out
    assert "Settled, because all of them agree: --head-hidden post." in out
    assert "Not settled: --head-first-embed." in out
    assert "The declared wiring is tied with the best." in out
    assert "Winner" not in out


@pytest.mark.parametrize(("family", "feed"), [(STEP, "chain"), (MIMO_V2, "target")])
def test_the_feed_of_several_modules_is_found(
    family: HeadFamily, feed: str, tmp_path: Path
) -> None:
    folder = make_own_modules(tmp_path, family)
    judged = judged_of(load_rewirable(loading(folder)), random_prompts(3, vocab=32), ["feed"])
    assert judged.winner is not None and judged.winner.wiring.feed == feed
    assert judged.winner.length.estimate == K + 1
    assert judged.tried[1].length.estimate == 2


@pytest.mark.parametrize(
    ("kind", "family", "num_modules"),
    [
        ("mimo", MIMO, 1),
        ("deepseek_v3", DEEPSEEK, 1),
        ("qwen3_next-hybrid", QWEN, 1),
        ("step3p7", STEP, 3),
        ("mimo_v2_flash", MIMO_V2, 3),
    ],
)
def test_drafts_are_those_of_the_engine(
    kind: str, family: HeadFamily, num_modules: int, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, kind, family=family, num_modules=num_modules)
    check_drafts(loading(folder))


def test_drafts_of_an_eagle_3_head_are_those_of_the_engine(tmp_path: Path) -> None:
    """It reads three states of the target's layers, and drafts a part of the vocabulary."""
    target = make_target(tmp_path / "target")
    head = make_head_folder(tmp_path / "head", SAFEAILAB, target)
    apart = Loading(str(target), str(head), True, CPU, torch.float32)
    check_drafts(apart)
    rewirable = load_rewirable(apart)
    every = rewirable.wirings(ALL, K)
    assert len(every) == 4
    varied = {(wiring.chain, wiring.first_embed) for wiring in every}
    assert varied == {(chain, embed) for chain in ("pre", "post") for embed in ("kept", "zeroed")}
    judged = judged_of(rewirable, random_prompts(3, vocab=64), ALL)
    assert len(judged.tried) == 4


def check_drafts(what: Loading) -> None:
    """The drafts at every start are those of a request with the text before it for a prompt."""
    rewirable = load_rewirable(what)
    starts = starts_of(rewirable, random_prompts(3, vocab=64), tokens=14)
    assert len(starts.starts) > 6
    rewirable.apply(rewirable.declared)
    spec = make_speculator(load_model(what), max_batch_size=1, room=96)
    state = make_state(spec, K, 1)
    expected = {}
    for start in starts.starts:
        before = starts.texts[start.text].tokens[: start.length]
        prefilled = prefill(spec, [before], max_num_tokens=96)
        begin_decoding(spec, state, prefilled, tokens_left=K + 1, ignore_eos=True)
        expected[start] = [prefilled.last.item(), *state.full.drafts[0].tolist()]
    drafter = Drafter(rewirable.model, SDPA, starts, 64)
    drafter._given = expected.__getitem__  # type: ignore[method-assign]
    assert drafter.accepted().tolist() == [K] * len(starts.starts)


@pytest.mark.parametrize("kind", ["mimo", "gemma3_text"])
def test_a_rewired_head_is_the_one_that_is_loaded_with_the_flags(kind: str, tmp_path: Path) -> None:
    """Its norms and its wiring, where the target scales by w and where it does by 1 + w."""
    folder = make_checkpoint(tmp_path, kind)
    rewirable = load_rewirable(loading(folder))
    # In which order the head reads its halves, no norm's scale decides.
    points = ["out_norm", "norm_form", *(["concat"] if kind == "mimo" else [])]
    for wiring in rewirable.wirings(points, K):
        rewirable.apply(wiring)
        flags = {name: getattr(wiring, name) for name in ALL}
        loaded = load_model(loading(folder, **flags)).head
        assert loaded is not None
        assert wiring_of(rewirable.head.family) == wiring_of(loaded.family)
        expected, got = dict(loaded.named_parameters()), dict(rewirable.head.named_parameters())
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)


def test_wirings_that_cannot_differ_are_one(right: Path) -> None:
    rewirable = load_rewirable(loading(right))
    assert rewirable.wirings([], K) == [rewirable.declared]
    # Without an output norm both chains are one, and a single module has no feed.
    assert len(rewirable.wirings(["chain", "out_norm", "feed"], K)) == 5
    assert len(rewirable.wirings(["chain"], 1)) == 1
    assert len(rewirable.wirings(ALL, K)) == 2 * 2 * 5 * 2 * 2


def test_one_prompt_settles_nothing() -> None:
    """Starts of one prompt may all be alike for a reason of their own."""
    differences = np.full(30, 2)
    assert paired_estimate(differences, np.zeros(30, dtype=np.int64)).error == inf
    several = paired_estimate(differences, np.arange(30) // 5)
    # By hand: (30 x 4 + 1) / 32 - (60 / 32)^2 over 32.
    assert several.value == 2 and several.error == pytest.approx(sqrt((121 / 32 - 3.515625) / 32))
    assert several.freedom == 5


def test_starts_of_one_prompt_do_not_count_as_independent() -> None:
    prompt_of = np.arange(40) // 10
    alike = np.where(prompt_of < 2, 2, 0)
    mixed = np.where(np.arange(40) % 2 == 0, 2, 0)
    # By hand: four sums of 10, and sqrt(4 / 3 x 400) / 40.
    assert paired_estimate(alike, prompt_of).error == pytest.approx(sqrt(400 * 4 / 3) / 40)
    assert paired_estimate(mixed, prompt_of).error < 0.2


def test_nothing_to_compare_is_said(right: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first draft has no chain."""
    assert study_of(right, "--vary", "chain", "--spec-tokens", "1") == 0
    out = capsys.readouterr().out
    assert "There is nothing to compare" in out
    assert "Winner" not in out


def test_a_small_lead_is_no_win() -> None:
    declared, other = HeadWiring(concat="HE"), HeadWiring(concat="EH")
    kept = np.array([1, 0, 2, 1, 1, 0, 3, 0])
    prompt_of = np.arange(8) // 2
    more = kept.copy()
    more[1] += 1
    judged = judge([declared, other], [kept, more], prompt_of, K)
    assert judged.tried[0].wiring == other and judged.winner is None
    assert judged.declared.behind is not None and not judged.declared.is_apart
    assert "tied with the best" in conclusions(judged)[-1]
    assert "| declared | HE | 2.00 (" in markdown(judged, "title")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preset:mimo-7b"], "random weights have no right wiring"),
        (["default", "--num-prompts", "1"], "fewer than 2 prompts have 4 tokens"),
        (["default", "--max-new-tokens", "100000"], "--max-new-tokens 100000: "),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wirings.main([*arguments, "--device", "cpu", "--attention", "sdpa"]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_point_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wirings.main(["default", "--vary", "hidden,norm"])
    assert "'norm' is none of concat, hidden, chain" in capsys.readouterr().err
