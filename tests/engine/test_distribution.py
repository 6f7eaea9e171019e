"""Distributions and draws: transformers' own warpers, and the ends of the inverse CDF."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from cgbench.engine.distribution import distribution, draw

JUST_BELOW_1 = 1 - 2**-24
"""The largest float32 that a uniform draw can be."""


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [0.05, 0.8, 0.95, 1.0])
def test_distributions_are_transformers(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    logits = 3 * torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = TopPLogitsWarper(top_p)(None, scores)
    got = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert torch.equal(got == 0, scores == -torch.inf)
    torch.testing.assert_close(got, scores.softmax(-1))


def test_distributions_of_half_precision_logits_are_float32() -> None:
    logits = torch.randn(3, 40).bfloat16()
    got = distribution(logits, temperature=0.7)
    torch.testing.assert_close(got, (logits.float() / 0.7).softmax(-1))


def test_tokens_that_tie_with_the_kth_are_kept() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert (distribution(logits, top_k=2) > 0).tolist() == [[True, True, True, False, True]]


def test_top_p_keeps_no_more_of_a_tie_than_the_mass_asks_for() -> None:
    """e^3 and one of three times e^1 are over 0.75 of the mass."""
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]])
    assert (distribution(logits, top_p=0.75) > 0).sum().item() == 2


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.9), (50, 0.95)])
def test_16_bit_logits_which_tie_often_are_filtered_as_transformers_does(
    top_k: int | None, top_p: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(40, 20_000, generator=generator)).bfloat16().float()
    expected = logits
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    expected = TopPLogitsWarper(top_p)(None, expected).softmax(-1)
    got = distribution(logits, top_k=top_k, top_p=top_p)
    # Which of several alike is kept is the sort's; how many, and their mass, is not.
    assert torch.equal((got > 0).sum(-1), (expected > 0).sum(-1))
    torch.testing.assert_close(got.sort(-1).values, expected.sort(-1).values)


def test_the_smallest_temperature_is_finite_and_greedy() -> None:
    logits = 1e4 * torch.randn(30, 64, generator=torch.Generator().manual_seed(1))
    got = distribution(logits, temperature=1e-6)
    assert torch.equal(got, torch.nn.functional.one_hot(logits.argmax(-1), 64).float())


@pytest.mark.parametrize(
    "weights",
    [[0, 0, 1, 0], [0, 2e-38, 0, 3e-38], [0.5, 0, 0, 0.5], [0, 1, 1e-30, 0], [0, 3, 0, 7]],
)
@pytest.mark.parametrize("uniform", [0.0, 2**-24, 0.5, JUST_BELOW_1])
def test_a_token_of_weight_zero_never_comes_out(weights: list[float], uniform: float) -> None:
    row = torch.tensor([weights], dtype=torch.float32)
    token = draw(row, torch.tensor([uniform]), row.argmax(-1))
    assert row[0, token] > 0


def test_the_ends_of_the_uniforms_are_the_ends_of_the_weights() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.5, 0.25, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([0.0, 0.25, 0.75, JUST_BELOW_1])
    assert draw(weights, uniforms, torch.zeros(4).long()).tolist() == [1, 2, 3, 3]


def test_where_no_weight_is_left_the_likeliest_comes_out() -> None:
    got = draw(torch.zeros(3, 5), torch.tensor([0.0, 0.5, JUST_BELOW_1]), torch.tensor([4, 0, 2]))
    assert got.tolist() == [4, 0, 2]


def test_a_sum_that_rounds_up_where_there_is_no_weight_draws_the_likeliest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a parallel sum may do: step up at token 1, whose weight is zero."""
    cdf = torch.tensor([[0.5, 0.5000001, 0.5, 1.0]])
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: cdf)
    weights = torch.tensor([[0.5, 0.0, 0.0, 0.5]])
    assert draw(weights, torch.tensor([0.5]), torch.tensor([3])).tolist() == [3]
