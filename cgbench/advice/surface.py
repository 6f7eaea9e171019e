"""Iteration time over k, batch size and context: measured on a sparse grid, predicted between.

The stages of an iteration add up, so its time is a sum of terms that none can be negative:

- verify and draft 1 read k + 1 tokens a request: a rising function of the tokens, linear between
  knots, and attention over the context. It is flat where weights are waited for, steep where
  arithmetic is, and it levels off where a mixture has read all its experts.
- drafting begins at k = 1: a constant, and a part by tokens.
- drafts 2..k are alike: a constant, a part a request, and attention over the context.

The terms are fitted by non-negative least squares on relative errors. How wrong a prediction is,
the measured cells tell: each is left out in turn and predicted from the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, CellTime, MeasuredTimes
from cgbench.statistics import CONFIDENCE, Estimate, Floats

LEAST_CELLS = 10
"""Fewer are no more than the terms they are to tell apart."""

KNOT_RATIO = 2
"""Between neighbouring knots, at the least: closer ones would follow noise."""


@dataclass(frozen=True, slots=True)
class SurfaceCell:
    """``seconds`` with its interval: of blocks where it is measured, else of the prediction."""

    at: At
    seconds: Bounded
    is_measured: bool


@dataclass(frozen=True)
class Surface:
    """A fit to measured cells of one scope.

    ``left_out`` are the relative errors (logs) of each of them, predicted from the others.
    """

    times: MeasuredTimes
    left_out: tuple[float, ...]
    _knots: Floats
    _weights: Floats

    @property
    def median_error(self) -> float:
        return float(np.median(np.abs(self.left_out)))

    @property
    def worst_error(self) -> float:
        return max(map(abs, self.left_out))

    def cell(self, at: At) -> SurfaceCell | None:
        """A cell of the surface; None outside what was measured, because nothing tells it there.

        What is predicted is a graph of just this batch size, without padding.
        """
        measured = self.times.cells.get(at)
        if measured is not None:
            return SurfaceCell(at, bounded(measured.log_estimate, CONFIDENCE), True)
        if not self._holds(at):
            return None
        seconds = float(_terms(at, at.batch_size, self._knots) @ self._weights)
        error = sqrt(sum(each**2 for each in self.left_out) / len(self.left_out))
        estimate = Estimate(log(seconds), error, len(self.left_out) - 1)
        return SurfaceCell(at, bounded(estimate, CONFIDENCE), False)

    def _holds(self, at: At) -> bool:
        """Whether it lies between measured values in every direction, its tokens too."""
        sides = zip(*self.times.cells, strict=True)
        tokens = [_tokens(each, cell.bucket) for each, cell in self.times.cells.items()]
        inside = all(min(side) <= value <= max(side) for side, value in zip(sides, at, strict=True))
        return inside and min(tokens) <= _tokens(at, at.batch_size) <= max(tokens)


def surface_of(times: MeasuredTimes) -> Surface | None:
    """None where too few cells were measured to leave one out."""
    cells = [*times.cells.values()]
    if len(cells) < LEAST_CELLS:
        return None
    knots, weights = _fit(cells)
    return Surface(times, tuple(_left_out(cells)), knots, weights)


def grid(times: MeasuredTimes) -> list[At]:
    """Every k and power of two between the measured ones, and the measured batch sizes."""
    lengths = times.lengths
    found = []
    for context in times.contexts:
        sizes = times.batch_sizes(context)
        powers = {2**i for i in range(21) if sizes[0] <= 2**i <= sizes[-1]}
        for size in sorted(powers | {*sizes}):
            found += [At(context, size, k) for k in range(lengths[0], lengths[-1] + 1)]
    return found


def _left_out(cells: Sequence[CellTime]) -> Iterator[float]:
    for i, cell in enumerate(cells):
        knots, weights = _fit([*cells[:i], *cells[i + 1 :]])
        yield log(float(_terms(cell.at, cell.bucket, knots) @ weights) / cell.seconds)


def _fit(cells: Sequence[CellTime]) -> tuple[Floats, Floats]:
    # It takes a tenth of a second to import, which only this needs.
    from scipy.optimize import nnls

    knots = _knots(sorted({_tokens(cell.at, cell.bucket) for cell in cells}))
    rows = [_terms(cell.at, cell.bucket, knots) / cell.seconds for cell in cells]
    matrix = np.array(rows)
    scale = matrix.max(axis=0)
    scale[scale == 0] = 1.0
    weights, _ = nnls(matrix / scale, np.ones(len(cells)))
    return knots, np.asarray(weights / scale, dtype=np.float64)


def _knots(tokens: Sequence[int]) -> Floats:
    """Of the measured numbers of tokens the first, the last, and some that lie apart."""
    apart = [tokens[0]]
    for each in tokens[1:]:
        if each >= KNOT_RATIO * apart[-1]:
            apart.append(each)
    return np.array([*apart, tokens[-1]] if apart[-1] < tokens[-1] else apart, dtype=np.float64)


def _tokens(at: At, requests: int) -> int:
    return requests * (at.spec_tokens + 1)


def _terms(at: At, requests: int, knots: Floats) -> Floats:
    """What a cell's time is the weighted sum of. ``requests`` are those of its graph."""
    context, k = at.context_len, at.spec_tokens
    tokens, drafts, rest = _tokens(at, requests), min(k, 1), max(k - 1, 0)
    low, high = knots[:-1], knots[1:]
    rising = np.clip((tokens - low) / (high - low), 0.0, 1.0)
    others = [
        1.0,
        requests * context,
        tokens * context,
        drafts,
        drafts * tokens,
        rest,
        rest * requests,
        rest * requests * context,
    ]
    return np.concatenate([rising, np.array(others, dtype=np.float64)])
