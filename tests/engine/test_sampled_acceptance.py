"""Speculative sampling, the rule alone: what it emits is distributed as the target says.

Fixed logits of target and head, many requests. Drafts are drawn by the rule itself. Rules with a
planted mistake go through the same test, and must fail it by far.
"""

import math
from functools import cache

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from cgbench.engine.acceptance import Sampled
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import RowState

K, VOCAB = 3, 10
REQUESTS, ROUNDS = 20_000, 4
TARGET = 1.5 * torch.randn(K + 1, VOCAB, generator=torch.Generator().manual_seed(1))
HEAD = TARGET[:K] + torch.randn(K, VOCAB, generator=torch.Generator().manual_seed(2))


class NoResidual(Sampled):
    """Planted: the recovered token is drawn from p."""

    def _residual(self, rows: RowState, probs: Tensor) -> Tensor:
        return probs.take_along_dim(rows.num_accepted[:, None, None], 1)[:, 0]


class BonusFromTheWrongRow(Sampled):
    """Planted: the bonus token is drawn from row 0."""

    def __call__(self, rows: RowState, logits: Tensor) -> None:
        Sampled.__call__(self, rows, logits[:, [0, 1, 2, 0]])


class KeptByTheTargetAlone(Sampled):
    """Planted: a drawn draft is kept with probability p(x)."""

    def _kept(self, rows: RowState, probs: Tensor, draws: Tensor) -> Tensor:
        return draws < probs.gather(2, rows.drafts[..., None])[..., 0]


RIGHT = [
    Sampled(),
    Sampled(temperature=0.6),
    Sampled(temperature=1.7, top_k=4),
    Sampled(top_p=0.8),
    Sampled(temperature=1.3, top_k=7, top_p=0.9),
]
WRONG = [NoResidual, BonusFromTheWrongRow, KeptByTheTargetAlone]
GREEDY_DRAFTS = [
    Sampled(rule.temperature, rule.top_k, rule.top_p, drafts="greedy") for rule in RIGHT
]


def make_rows(k: int, requests: int = REQUESTS) -> RowState:
    state = DecodeState(
        spec_tokens=k,
        max_batch_size=requests,
        scratch_slot=requests,
        hidden_size=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
        draft_vocab_size=VOCAB,
    )
    generator = torch.Generator().manual_seed(0)
    state.full.slot_of_row.copy_(torch.randperm(requests, generator=generator))
    return state.full


@cache
def emitted(rule: Sampled, k: int = K) -> tuple[Tensor, Tensor]:
    """``num_accepted [N]`` and ``out [N, k + 1]`` of ``ROUNDS`` iterations of all requests."""
    torch.manual_seed(5)
    rows = make_rows(k)
    counts, tokens = [], []
    for _ in range(ROUNDS):
        rows.uniforms.uniform_()
        for step in range(1, k + 1):
            rows.drafts[:, step - 1] = rule.draft(rows, HEAD[step - 1].expand(REQUESTS, -1), step)
        rows.uniforms.uniform_()
        rule(rows, TARGET[: k + 1].expand(REQUESTS, -1, -1))
        counts.append(rows.num_accepted.clone())
        tokens.append(rows.out.clone())
    return torch.cat(counts), torch.cat(tokens)


def expected(rule: Sampled, logits: Tensor) -> Tensor:
    """Probabilities ``[rows, V]`` in float64, filtered in the plainest way."""
    probs = (logits.double() / rule.temperature).softmax(-1)
    if rule.top_k is not None:
        probs[probs < probs.sort(descending=True).values[:, [rule.top_k - 1]]] = 0
        probs /= probs.sum(-1, keepdim=True)
    for row in probs:
        mass = 0.0
        for token in row.argsort(descending=True):
            mass, before = mass + float(row[token]), mass
            row[token] *= before < rule.top_p
    return probs / probs.sum(-1, keepdim=True)


def p_value(tokens: Tensor, probs: Tensor) -> float:
    """Of the hypothesis that ``tokens [N]`` are drawn from ``probs [V]``."""
    counts = tokens.bincount(minlength=VOCAB)
    if counts[probs == 0].any():
        return 0.0
    possible = probs > 0
    if possible.sum() == 1:
        return 1.0
    return float(chisquare(counts[possible], probs[possible] * len(tokens)).pvalue)


@pytest.mark.parametrize(
    ("rule", "is_right"),
    [
        *((rule, True) for rule in [*RIGHT, *GREEDY_DRAFTS]),
        *((rule(), False) for rule in WRONG),
        *((rule(temperature=1.3, top_k=7, top_p=0.9), False) for rule in WRONG),
        (NoResidual(drafts="greedy"), False),
        (BonusFromTheWrongRow(drafts="greedy"), False),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_what_is_emitted_is_distributed_as_the_target_says(rule: Sampled, is_right: bool) -> None:
    """At each position, over the requests that kept all drafts before it."""
    num_accepted, out = emitted(rule)
    probs = expected(rule, TARGET)
    p_values = [
        p_value(out[num_accepted >= position, position], probs[position])
        for position in range(K + 1)
    ]
    if is_right:
        assert min(p_values) > 0.01
    else:
        assert min(p_values) < 1e-6


@pytest.mark.parametrize("rule", [RIGHT[0], GREEDY_DRAFTS[0]], ids=str)
def test_the_token_after_is_independent_of_the_one_before(rule: Sampled) -> None:
    num_accepted, out = emitted(rule)
    pairs = out[num_accepted >= 1, :2]
    for token in range(VOCAB):
        after = pairs[pairs[:, 0] == token, 1]
        assert len(after) < 500 or p_value(after, expected(rule, TARGET)[1]) > 1e-3


@pytest.mark.parametrize("rule", [*RIGHT, *GREEDY_DRAFTS], ids=str)
def test_acceptance_is_the_overlap_of_target_and_head(rule: Sampled) -> None:
    """The rate of draft j, given the ones before, is the sum of min(p, q): Leviathan et al."""
    num_accepted, _ = emitted(rule)
    p, q = expected(rule, TARGET)[:K], expected(rule, HEAD)
    if rule.drafts == "greedy":
        q = torch.nn.functional.one_hot(HEAD.argmax(-1), VOCAB).double()
    for position, rate in enumerate(torch.minimum(p, q).sum(-1).tolist()):
        tried = num_accepted[num_accepted >= position]
        deviation = math.sqrt(max(rate * (1 - rate), 1e-9) / len(tried))
        assert (tried > position).double().mean().item() == pytest.approx(rate, abs=4 * deviation)


@pytest.mark.parametrize("rule", RIGHT, ids=str)
def test_without_drafts_it_is_plain_sampling(rule: Sampled) -> None:
    num_accepted, out = emitted(rule, k=0)
    assert not num_accepted.any()
    assert p_value(out[:, 0], expected(rule, TARGET)[0]) > 0.01


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("rule", [RIGHT[4], GREEDY_DRAFTS[4]], ids=str)
def test_no_impossible_token_at_the_ends_of_the_uniforms(rule: Sampled, uniform: float) -> None:
    """Random logits, many requests. Every draw is the smallest, or the largest, there is."""
    count = 500
    rows = make_rows(K, count)
    target = 3 * torch.randn(count, K + 1, VOCAB, generator=torch.Generator().manual_seed(8))
    rows.uniforms.fill_(uniform)
    for step in range(1, K + 1):
        rows.drafts[:, step - 1] = rule.draft(rows, target[:, step - 1].roll(1, 0), step)
    rule(rows, target)
    probs = expected(rule, target.flatten(0, 1)).unflatten(0, (count, K + 1))
    for position in range(K + 1):
        reached = rows.num_accepted >= position
        chosen = probs[:, position].gather(1, rows.out[:, position, None])
        assert (chosen[reached] > 0).all()


def test_a_head_that_equals_the_target_has_every_draft_kept() -> None:
    """Even at the largest draw; the residual, empty but for rounding, is never asked for."""
    rows = make_rows(K, 2000)
    rule = Sampled()
    logits = torch.randn(2000, K + 1, VOCAB, generator=torch.Generator().manual_seed(9))
    rows.uniforms.uniform_()
    for step in range(1, K + 1):
        rows.drafts[:, step - 1] = rule.draft(rows, logits[:, step - 1], step)
    rows.uniforms.fill_(1 - 2**-24)
    rule(rows, logits)
    assert (rows.num_accepted == K).all()
