"""Rows that cuBLAS multiplies: chosen by their times, kept for the process, and right."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cgbench.kernels import library_rows
from cgbench.kernels.library_rows import choosing, forget, multiply, padded_products

Timed = Callable[[Tensor, Tensor, list[int]], dict[int, float]]


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Other tests' choices are put aside."""
    monkeypatch.setattr(library_rows, "_choices", {})
    yield


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 80, 32), torch.randn(48, 32), torch.randn(48)


def times(**by_rows: float) -> Timed:
    """Times by rows, of candidates that must be these."""

    def timed(x: Tensor, weight: Tensor, candidates: list[int]) -> dict[int, float]:
        known = {int(rows[1:]): seconds for rows, seconds in by_rows.items()}
        assert candidates == sorted(known)
        return known

    return timed


def test_the_fastest_rows_are_kept_for_the_process(
    operands: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = operands
    seen: list[int] = []
    linear = F.linear

    def watched(x: Tensor, *rest: Tensor) -> Tensor:
        seen.append(x.numel() // x.shape[-1])
        return linear(x, *rest)

    monkeypatch.setattr(library_rows, "_timed", times(r240=90.0, r248=65.0, r256=64.0))
    monkeypatch.setattr(F, "linear", watched)
    before = multiply(x, weight, bias)
    with choosing():
        first = multiply(x, weight, bias)
    monkeypatch.setattr(library_rows, "_timed", times())
    with choosing():
        second = multiply(x, weight, bias)
    after = multiply(x, weight, bias)
    assert seen == [240, 256, 256, 256]
    assert first.shape == (3, 80, 48) and first.is_contiguous()
    for got in (first, second, after):
        torch.testing.assert_close(got, before)
    assert padded_products() == ["240 x 32 by 48 as 256 rows"]
    forget()
    assert padded_products() == []


def test_a_gain_within_the_noise_changes_nothing(
    operands: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_rows, "_timed", times(r240=64.0, r248=59.0, r256=58.0))
    with choosing():
        multiply(*operands)
    assert padded_products() == []


def test_outside_the_choosing_nothing_is_timed(
    operands: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_rows, "_timed", times())
    torch.testing.assert_close(multiply(*operands), F.linear(*operands))
    # Few rows are another kernel's, and very many gain nothing.
    with choosing():
        for rows in (1, 64, 513):
            multiply(torch.randn(rows, 32), *operands[1:])


@pytest.mark.gpu
def test_rows_are_timed_on_a_gpu() -> None:
    x = torch.randn(240, 4096, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(22016, 4096, device="cuda", dtype=torch.bfloat16)
    right = F.linear(x, weight)
    with choosing():
        got = multiply(x, weight, None)
    [(made, rows)] = library_rows._choices.items()
    assert made.rows == 240 and rows in (240, 248, 256)
    torch.testing.assert_close(got, right, rtol=2e-2, atol=1.0)
