"""Speculative sampling through the whole engine, from the prefill's token on.

The reference is the chain rule over transformers' own forward and its own logits warpers.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import PreTrainedModel, TemperatureLogitsWarper, TopPLogitsWarper

from cgbench.engine.acceptance import Sampled
from cgbench.engine.graphs import phases_of
from cgbench.engine.iteration import no_mark
from cgbench.engine.runner import EagerRunner
from cgbench.request.choices import Drafts
from cgbench.words import Scope
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

VOCAB, PROMPT, LENGTH = 5, [3, 1, 4, 1], 3
REQUESTS, WAVES = 4000, 3
TEMPERATURE, TOP_P = 3.0, 0.9

FORMS = [*Drafts]


@pytest.fixture(scope="module")
def small_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return make_checkpoint(folder, "mimo", seed=3, vocab_size=VOCAB)


@torch.inference_mode()
def joint_distribution(model: PreTrainedModel) -> Tensor:
    """``[VOCAB] * LENGTH``: the probability of every first LENGTH tokens after PROMPT."""
    joint, continuations = torch.ones(1, dtype=torch.float64), [[]]
    for _ in range(LENGTH):
        logits = model(torch.tensor([PROMPT + each for each in continuations])).logits[:, -1]
        scores = TopPLogitsWarper(TOP_P)(None, TemperatureLogitsWarper(TEMPERATURE)(None, logits))
        joint = (joint[:, None] * scores.double().softmax(-1)).flatten()
        continuations = [[*each, token] for each in continuations for token in range(VOCAB)]
    return joint


def p_value(folder: Path, k: int, rule: Sampled) -> float:
    """Of the hypothesis that the engine's first LENGTH tokens are drawn as transformers says."""
    room = len(PROMPT) + LENGTH + 2 * k
    spec = make_speculator(load_tiny(folder), max_batch_size=REQUESTS, room=room, accept=rule)
    runner = EagerRunner(spec, make_state(spec, k, REQUESTS))
    counts = torch.zeros(VOCAB**LENGTH, dtype=torch.long)
    for wave in range(WAVES):
        got = decode_prompts(spec, runner, [PROMPT] * REQUESTS, LENGTH, seed=wave)
        place = torch.tensor(got.token_ids) @ torch.tensor([VOCAB**2, VOCAB, 1])
        counts += place.bincount(minlength=len(counts))
    expected = REQUESTS * WAVES * joint_distribution(reference_model(folder))
    possible = expected > 0
    assert expected[possible].min() > 5 and not possible.all()
    assert not counts[~possible].any()
    return float(chisquare(counts[possible], expected[possible]).pvalue)


@pytest.mark.parametrize(("k", "drafts"), [(0, "sampled"), (1, "greedy"), (2, "sampled")])
def test_text_is_distributed_as_plain_sampling(small_vocab: Path, k: int, drafts: Drafts) -> None:
    assert p_value(small_vocab, k, Sampled(TEMPERATURE, None, TOP_P, drafts)) > 0.01


def test_prefill_draws_apart_from_the_first_iteration(
    small_vocab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: both begin torch's generator with one seed, and the test above finds it."""

    def shared(count: int, seed: int) -> list[float]:
        return torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()

    monkeypatch.setattr("cgbench.engine.prefill._uniforms", shared)
    assert p_value(small_vocab, 0, Sampled(TEMPERATURE, None, TOP_P)) < 1e-6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo", seed=3)


@pytest.fixture(scope="module")
def plain_greedy(checkpoint: Path) -> list[list[int]]:
    return greedy_reference(reference_model(checkpoint), random_prompts(6), 20)


@pytest.mark.parametrize(
    ("k", "drafts"), [(0, "sampled"), (1, "sampled"), (3, "sampled"), (3, "greedy")]
)
def test_near_temperature_zero_the_tokens_are_greedys(
    checkpoint: Path, plain_greedy: list[list[int]], k: int, drafts: Drafts
) -> None:
    rule = Sampled(temperature=1e-6, drafts=drafts)
    spec = make_speculator(load_tiny(checkpoint), max_batch_size=6, room=60, accept=rule)
    prompts = random_prompts(6)
    got = decode_prompts(spec, EagerRunner(spec, make_state(spec, k, 6)), prompts, 20)
    assert got.token_ids == plain_greedy


class PaddedPhases(EagerRunner):
    """What a graph runner launches, without graphs: a phase at a time, padded to a bucket."""

    BUCKETS = (1, 2, 4, 6, 8)

    def num_rows(self, batch_size: int) -> int:
        return min(bucket for bucket in self.BUCKETS if bucket >= batch_size)

    def step(self, batch_size: int) -> None:
        rows = self.state.rows(self.num_rows(batch_size))
        for function in phases_of(Scope.PHASE, self.state.spec_tokens).values():
            function(self.spec, rows, no_mark)


def make_runner(
    checkpoint: Path,
    kind: type[EagerRunner],
    drafts: Drafts,
    k: int = 3,
    eos: tuple[int, ...] = (),
) -> EagerRunner:
    rule = Sampled(temperature=4.0, top_p=0.95, drafts=drafts)
    spec = make_speculator(load_tiny(checkpoint), max_batch_size=8, room=80, accept=rule)
    return kind(spec, make_state(spec, k, 8, eos))


EOS = (11, 23, 42)
"""Enough of them that requests end at different times."""


@pytest.fixture(scope="module")
def of_eight(checkpoint: Path) -> Callable[[Drafts], Any]:
    """What eight requests get together, decoded once for each form of drafts."""

    @cache
    def decode(drafts: Drafts) -> Any:
        plain = make_runner(checkpoint, EagerRunner, drafts, eos=EOS)
        return decode_prompts(plain.spec, plain, random_prompts(8), 40, seed=7)

    return decode


@pytest.mark.parametrize(
    ("kind", "batch_size", "max_num_tokens", "drafts"),
    [
        (EagerRunner, 1, 1000, "sampled"),
        (EagerRunner, 5, 30, "greedy"),
        (EagerRunner, 8, 1, "sampled"),
        (PaddedPhases, 3, 1000, "greedy"),
        (PaddedPhases, 5, 30, "sampled"),
        (PaddedPhases, 8, 1000, "greedy"),
    ],
)
def test_a_requests_tokens_depend_on_nothing_around_it(
    checkpoint: Path,
    of_eight: Callable[[Drafts], Any],
    kind: type[EagerRunner],
    batch_size: int,
    max_num_tokens: int,
    drafts: Drafts,
) -> None:
    """Neighbours, prefill groups, padding, phases: and rows are re-packed as requests end."""
    prompts, expected = random_prompts(8), of_eight(drafts)
    assert len({len(counts) for counts in expected.accepted}) > 3
    runner = make_runner(checkpoint, kind, drafts, eos=EOS)
    for _ in range(2):  # the second time over what the first one left behind
        got = decode_prompts(
            runner.spec,
            runner,
            prompts[:batch_size],
            40,
            seed=7,
            max_num_tokens=max_num_tokens,
        )
        assert got.token_ids == expected.token_ids[:batch_size]
        assert got.accepted == expected.accepted[:batch_size]


@pytest.mark.parametrize("drafts", FORMS)
def test_every_request_and_every_seed_draws_for_itself(checkpoint: Path, drafts: Drafts) -> None:
    runner = make_runner(checkpoint, EagerRunner, drafts)
    texts = [
        tuple(tokens)
        for seed in range(3)
        for tokens in decode_prompts(runner.spec, runner, [[5, 6, 7]] * 8, 30, seed=seed).token_ids
    ]
    assert len(set(texts)) == 24
    assert len({text[0] for text in texts}) > 3


@pytest.mark.parametrize("drafts", FORMS)
def test_accepted_drafts_and_tokens_agree(checkpoint: Path, drafts: Drafts) -> None:
    runner = make_runner(checkpoint, EagerRunner, drafts)
    got = decode_prompts(runner.spec, runner, random_prompts(8), 40, seed=1)
    for tokens, accepted in zip(got.token_ids, got.accepted, strict=True):
        # The last iteration may be cut at the length limit.
        assert 1 + sum(count + 1 for count in accepted[:-1]) < len(tokens) == 40
        assert 40 <= 1 + sum(count + 1 for count in accepted)
        assert set(accepted) <= {0, 1, 2, 3}


def test_only_drawn_drafts_keep_their_distributions(checkpoint: Path) -> None:
    drawn, greedy = (make_runner(checkpoint, EagerRunner, form).state.full for form in FORMS)
    assert drawn.draft_probs.shape == (9, 4, 64)
    assert greedy.draft_probs.numel() == 0
    assert make_runner(checkpoint, EagerRunner, "sampled", k=0).state.full.draft_probs.numel() == 0
