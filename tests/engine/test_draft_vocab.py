"""A reduced draft vocabulary: the same tokens, and drafts of the N likeliest alone."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cgbench.checks import drafts
from cgbench.checks.findings import Answer
from cgbench.checks.reference import reference_draft_logits
from cgbench.engine.acceptance import Sampled
from cgbench.engine.generation import generate
from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.families import MIMO, MIMO_V2, STEP
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.loader import LoadedModel
from tests.support import dflash, eagle3
from tests.support.audited import FEW_SIZES, make_tiny_subject, run_checks, run_reference_checks
from tests.support.bigram_layouts import SUCCESSOR, VOCAB, make_bigram_layout
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

COUNT = 12
TOKENS = 64
RANKED = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(7)).tolist()
"""The tokens of the random checkpoints, likeliest first."""


def ranks_file(folder: Path, ids: Sequence[int]) -> Path:
    file = folder / "ranks.json"
    file.write_text(json.dumps([*ids]))
    return file


def prompts() -> list[list[int]]:
    return [[5], *random_prompts(4, seed=4)]


# Bigrams: token t is followed by SUCCESSOR[t], and the head drafts it.


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bigram_layout(tmp_path_factory.mktemp("bigram") / "model")


def cycle() -> list[int]:
    """All tokens, in the order in which the text has them."""
    tokens = [0]
    while (following := SUCCESSOR[tokens[-1]]) != 0:
        tokens.append(following)
    assert len(tokens) == VOCAB
    return tokens


def accepted_of(model: LoadedModel, k: int, first: int) -> list[int]:
    """How many drafts each iteration keeps of the text after ``first``. The text is checked on the
    way. The prompt has a token before it, because MiMo's head is fed nothing at position 0."""
    spec = make_speculator(model, max_batch_size=1, room=64)
    runner = EagerRunner(spec, make_state(spec, k, 1))
    prefilled = prefill(spec, [[0, first]], max_num_tokens=64)
    begin_decoding(spec, runner.state, prefilled, tokens_left=30)
    got = generate(runner, prefilled.last.tolist())
    tokens = got.token_ids[0]
    assert tokens == [SUCCESSOR[token] for token in [first, *tokens[:-1]]]
    return got.accepted[0]


@pytest.mark.parametrize("k", [1, 3])
def test_tokens_left_out_are_never_drafted(bigram: Path, tmp_path: Path, k: int) -> None:
    """Every second token of the text is left out. A draft is kept, and the next one never: two
    tokens an iteration whatever k is, where the whole head makes k + 1."""
    kept = cycle()[1::2]
    file = ranks_file(tmp_path, kept)
    reduced, whole = load_tiny(bigram, draft_vocab_from=file), load_tiny(bigram)
    # The first token after the prompt is of verify alone. The draft that follows it is kept.
    before = cycle()[-1]
    assert set(accepted_of(reduced, k, before)) == {1}
    assert set(accepted_of(whole, k, before)) == {k}


def test_one_token_left_out_costs_the_drafts_from_it_on(bigram: Path, tmp_path: Path) -> None:
    """Of 32 tokens in a circle one is left out, number 31. The text begins with number 2. Four
    tokens an iteration later, number 31 is due as draft 1 of the eighth."""
    file = ranks_file(tmp_path, cycle()[:-1])
    model = load_tiny(bigram, draft_vocab_from=file)
    assert accepted_of(model, 3, cycle()[1]) == [3, 3, 3, 3, 3, 3, 3, 0, 3]


def test_a_vocabulary_that_holds_the_text_costs_nothing(bigram: Path, tmp_path: Path) -> None:
    """Seven iterations of four tokens need numbers 3 to 30. The three ranked last are cut."""
    file = ranks_file(tmp_path, [*cycle()[3:31], *cycle()[:3]])
    model = load_tiny(bigram, draft_vocab=28, draft_vocab_from=file)
    assert accepted_of(model, 3, cycle()[1])[:7] == [3] * 7


@pytest.mark.parametrize("fault", ["not applied", "off by one", "rows off by one"])
def test_a_wrong_map_keeps_no_draft(bigram: Path, tmp_path: Path, fault: str) -> None:
    """Every second token is left out, so that no neighbour of a draft in the map is right."""
    model = load_tiny(bigram, draft_vocab_from=ranks_file(tmp_path, cycle()[1::2]))
    plant(model, fault)
    assert set(accepted_of(model, 3, cycle()[-1])) == {0}


def plant(model: LoadedModel, fault: str) -> None:
    head = model.head
    assert head is not None and head.target_ids is not None and head.output is not None
    ids = head.target_ids
    if fault == "not applied":
        head.to_target = lambda drafts: drafts  # type: ignore[method-assign]
    elif fault == "off by one":
        head.to_target = lambda drafts: ids[(drafts + 1) % len(ids)]  # type: ignore[method-assign]
    else:
        head.output.weight = nn.Parameter(head.output.weight.roll(1, 0))


# Random checkpoints: tokens, drafts and the audit.


def made(kind: str, folder: Path) -> tuple[Path, Path | None]:
    """A random checkpoint, and the folder of its head if that lies apart."""
    if kind == "dflash":
        target = dflash.make_target(folder / "target")
        return target, dflash.make_drafter(folder / "drafter", dflash.FULL)
    if kind == "eagle3":
        target = eagle3.make_target(folder / "target")
        return target, eagle3.make_head_folder(folder / "head", eagle3.WHOLE, target)
    family, form, count = {
        "mimo": (MIMO, HeadForm(), 1),
        "own": (MIMO, HeadForm(own_output=True), 1),
        "step3p5": (STEP, HeadForm(own_output=True), 3),
        "mimo_v2_flash": (MIMO_V2, HeadForm(), 2),
    }[kind]
    name = "mimo" if kind == "own" else kind
    made = make_checkpoint(folder / kind, name, family=family, form=form, num_modules=count)
    return made, None


KINDS = ("mimo", "own", "step3p5", "mimo_v2_flash", "eagle3", "dflash")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path | None]]:
    root = tmp_path_factory.mktemp("models")
    return {kind: made(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranks_file(tmp_path_factory.mktemp("ranks"), RANKED)


def load_kind(
    folders: dict[str, tuple[Path, Path | None]], kind: str, ranks: Path, count: int | None
) -> LoadedModel:
    """Each is loaded once. A test that changes one loads its own."""
    return loaded(*folders[kind], count, None if count is None else ranks)


@cache
def loaded(folder: Path, head: Path | None, count: int | None, file: Path | None) -> LoadedModel:
    return load_tiny(folder, head=head, draft_vocab=count, draft_vocab_from=file)


def drafted(model: LoadedModel, k: int = 3, **changes: Any) -> torch.Tensor:
    """The drafts after prefill and of two iterations of ragged rows."""
    spec = make_speculator(model, max_batch_size=5, room=64, **changes)
    state = make_state(spec, k, 5)
    prefilled = prefill(spec, prompts(), max_num_tokens=50)
    begin_decoding(spec, state, prefilled, tokens_left=COUNT)
    seen = [state.full.drafts.clone()]
    for _ in range(2):
        iteration(spec, state.full)
        seen.append(state.full.drafts.clone())
    return torch.stack(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_plain_greedys(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path, kind: str
) -> None:
    expected = greedy_reference(reference_model(folders[kind][0]), prompts(), COUNT)
    for count, k, batch in ((1, 3, slice(5)), (5, 1, slice(5)), (5, 3, slice(2, 3))):
        spec = make_speculator(load_kind(folders, kind, ranks, count), max_batch_size=5, room=64)
        runner = EagerRunner(spec, make_state(spec, k, 5))
        got = decode_prompts(spec, runner, prompts()[batch], COUNT, max_num_tokens=64)
        assert got.token_ids == expected[batch]


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_of_the_likeliest_tokens_and_the_best_of_them(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path, kind: str
) -> None:
    """Draft 1 after prefill is the argmax of the whole head's logits over the tokens kept."""
    kept = sorted(RANKED[:20])
    model, whole = (load_kind(folders, kind, ranks, count) for count in (20, None))
    assert model.head is not None and whole.head is not None
    assert all(each.target_ids.tolist() == kept for each in model.head.mtp_modules)  # type: ignore[union-attr]
    made = drafted(model)
    assert set(made.flatten().tolist()) <= set(kept)
    for row, prompt in enumerate(prompts()):
        last = int(prefill(make_speculator(whole, max_batch_size=1, room=64), [prompt], 64).last)
        logits = reference_draft_logits(whole.target, whole.head, [*prompt, last], 3)[0]
        assert made[0, row, 0] == kept[int(logits[kept].argmax())]


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_vocabulary_drafts_bit_for_bit_alike(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path, kind: str
) -> None:
    reduced, whole = (load_kind(folders, kind, ranks, count) for count in (TOKENS, None))
    assert torch.equal(drafted(reduced), drafted(whole))
    assert isinstance(reduced.head, DraftHead) and isinstance(whole.head, DraftHead)
    for cut, plain in zip(reduced.head.mtp_modules, whole.head.mtp_modules, strict=True):
        own = whole.target.lm_head if plain.output is None else plain.output
        assert cut.output is not None and torch.equal(cut.output.weight, own.weight)


def test_sampled_drafts_have_no_probability_outside(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path
) -> None:
    for kind in ("mimo", "dflash"):
        spec = make_speculator(
            load_kind(folders, kind, ranks, 20), max_batch_size=5, room=64, accept=Sampled()
        )
        state = make_state(spec, 3, 5)
        prefilled = prefill(spec, prompts(), max_num_tokens=50)
        begin_decoding(spec, state, prefilled, tokens_left=COUNT)
        iteration(spec, state.full)
        probs = state.full.draft_probs[:5, :3]
        assert torch.allclose(probs.sum(-1), torch.ones(5, 3))
        assert not probs[..., RANKED[20:]].any()
        assert set(state.full.drafts.flatten().tolist()) <= set(RANKED[:20])
        greedy = drafted(load_kind(folders, kind, ranks, 20), accept=Sampled(drafts="greedy"))
        assert set(greedy.flatten().tolist()) <= set(RANKED[:20])


@pytest.mark.parametrize("kind", ["mimo", "step3p5", "mimo_v2_flash", "dflash"])
def test_the_audit_passes(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path, kind: str
) -> None:
    """By every check for one head. Of the others the reference alone knows the form."""
    model = load_kind(folders, kind, ranks, 20)
    how: dict[str, Any] = {"spec_tokens": (3,), "batch_sizes": FEW_SIZES, "model": model}
    run = run_checks if kind == "mimo" else run_reference_checks
    findings = run(make_tiny_subject(folders[kind][0], with_graphs=True, **how))
    assert {finding.answer for finding in findings} == {Answer.HOLDS}


@pytest.mark.parametrize("fault", ["not applied", "off by one", "rows off by one"])
def test_the_audit_finds_a_wrong_map(
    folders: dict[str, tuple[Path, Path | None]], ranks: Path, fault: str
) -> None:
    model = load_tiny(folders["mimo"][0], draft_vocab=20, draft_vocab_from=ranks)
    plant(model, fault)
    subject = make_tiny_subject(folders["mimo"][0], spec_tokens=(3,), model=model)
    assert drafts.run(subject).answer is Answer.WRONG
