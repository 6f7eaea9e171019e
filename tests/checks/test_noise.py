"""What is forgiven where tokens go to experts: only what the reference does too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgbench.checks.findings import Where
from cgbench.checks.noise import TRIES, picks_when_rounded_otherwise
from cgbench.checks.subject import Subject
from cgbench.checks.tokens import Judge
from tests.support.audited import make_tiny_subject
from tests.support.tiny import make_checkpoint

BFLOAT16_STEP = 2**-7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("experts"), "qwen3_moe", seed=3)


@pytest.fixture
def subject(folder: Path) -> Subject:
    """With no noise, so that no margin is a near-tie."""
    made = make_tiny_subject(folder, dtype=torch.bfloat16)
    made.plain.__dict__["_noises"] = 0.0, 0.0
    return made


def embeddings_seen(subject: Subject, answers: list[int], token: int) -> tuple[bool, list[Tensor]]:
    """What one call tries, given what each try answers."""
    ids = torch.arange(8)[None]
    seen: list[Tensor] = []

    def pick() -> int:
        seen.append(subject.spec.target.embed(ids))
        return answers[len(seen) - 1]

    return picks_when_rounded_otherwise(subject.spec.target, pick, token), seen


def test_every_try_moves_the_embeddings_by_rounding_s_size(subject: Subject) -> None:
    plain = subject.spec.target.embed(torch.arange(8)[None]).clone()
    found, seen = embeddings_seen(subject, [0] * TRIES, token=1)
    assert not found and len(seen) == TRIES
    for moved in seen:
        assert moved.dtype == plain.dtype and not torch.equal(moved, plain)
        assert ((moved - plain).abs() <= BFLOAT16_STEP * plain.abs()).all()
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(subject.spec.target.embed(torch.arange(8)[None]), plain)


def test_ranks_would_move_them_alike(subject: Subject) -> None:
    first, second = (embeddings_seen(subject, [0] * TRIES, token=1)[1] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_one_try_that_picks_the_token_is_enough(subject: Subject) -> None:
    found, seen = embeddings_seen(subject, [0, 0, 1], token=1)
    assert found and len(seen) == 3


def judged(subject: Subject, rank: int) -> bool:
    """Whether the judge forgives the token of that rank after a prompt, the likeliest being 0."""
    prompt = subject.prompts[0]
    order = subject.plain.next_logits(prompt).argsort(descending=True).tolist()
    return Judge(subject).difference(prompt, [order[0]], [order[rank]], Where()) is None


def test_a_token_that_no_rounding_brings_is_wrong(subject: Subject) -> None:
    assert not judged(subject, -1)


def test_what_the_reference_picks_too_is_forgiven_and_counted(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = subject.prompts[0]
    order = subject.plain.next_logits(prompt).argsort(descending=True).tolist()
    embedding = subject.spec.target.model.get_input_embeddings()
    monkeypatch.setattr(
        type(subject.plain), "next_token", lambda *_: order[len(embedding._forward_hooks)]
    )
    judge = Judge(subject)
    assert judge.difference(prompt, [order[0]], [order[1]], Where()) is None
    assert judge.figures["rerouted"] == 1 and judge.figures["largest_margin"] == 0


def test_float32_and_dense_models_are_not_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = make_tiny_subject(make_checkpoint(tmp_path, "mimo"), dtype=torch.bfloat16)
    dense.plain.__dict__["_noises"] = 0.0, 0.0

    def never(*_: object) -> int:
        raise AssertionError("computed anew")

    monkeypatch.setattr(type(dense.plain), "next_token", never)
    assert not judged(dense, 1)
    assert not judged(make_tiny_subject(folder), 1)
