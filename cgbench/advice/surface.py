"""Predict iteration time over k, batch size and context from cells measured on a sparse grid.

The stages of an iteration add up, so its time is a sum of terms, none of which can be negative:

    - verify and draft 1 read k + 1 tokens a request: a rising function of the tokens, linear
      between knots, and attention over the context. It is flat where weights are waited for, and
      steep where arithmetic is. It levels off where a mixture has read all its experts.
    - drafting begins at k = 1: a constant, and a part by tokens.
    - drafts 2..k are alike: a constant, a part a request, and attention over the context.

The terms are fitted by non-negative least squares on relative errors. The measured cells show how
wrong a prediction is, because each is left out in turn and predicted from the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import At, CellTime, MeasuredTimes
from cgbench.statistics import CONFIDENCE, Estimate, Floats
from cgbench.words import Mode, Scope

LEAST_CELLS = 10
"""Fewer cells are no more than the terms that they must separate."""

KNOT_RATIO = 1.5
"""Neighbouring knots differ by at least this factor, because closer ones would follow noise."""


@dataclass(frozen=True, slots=True)
class SurfaceCell:
    """A ``SurfaceCell`` is an iteration time with its interval, measured or predicted.

    The interval is that of blocks if the cell is measured, or else that of the prediction.
    """

    at: At
    seconds: Bounded
    is_measured: bool


@dataclass(frozen=True)
class Surface:
    """A ``Surface`` is a fit of iteration times to measured cells of one scope.

    ``left_out`` are the relative errors (logs) of those between others, predicted from the others.
    """

    times: MeasuredTimes
    left_out: tuple[float, ...]
    _fitted: Sequence[CellTime]
    _knots: Floats
    _weights: Floats

    @property
    def median_error(self) -> float:
        """Return the median of the absolute relative errors."""
        return float(np.median(np.abs(self.left_out)))

    @property
    def worst_error(self) -> float:
        """Return the largest absolute relative error."""
        return max(map(abs, self.left_out))

    def cell(self, at: At) -> SurfaceCell | None:
        """Return a cell of the surface, or None outside what was measured.

        No data covers what lies outside. A predicted cell is a graph of just this batch size,
        without padding.
        """
        measured = self.times.cells.get(at)
        if measured is not None:
            return SurfaceCell(at, bounded(measured.log_estimate, CONFIDENCE), True)
        if not _holds(self._fitted, at, at.batch_size):
            return None
        seconds = float(_terms(at, at.batch_size, self._knots) @ self._weights)
        error = sqrt(sum(each**2 for each in self.left_out) / len(self.left_out))
        estimate = Estimate(log(seconds), error, len(self.left_out) - 1)
        return SurfaceCell(at, bounded(estimate, CONFIDENCE), False)


def surface_of(times: MeasuredTimes) -> Surface | None:
    """Fit a surface to measured times.

    Return None if too few cells were measured, or too few of them lie between others.
    """
    cells = [cell for cell in times.cells.values() if _is_usual(times, cell)]
    if len(cells) < LEAST_CELLS:
        return None
    knots, weights = _fit(cells)
    left_out = tuple(_left_out(cells))
    return Surface(times, left_out, cells, knots, weights) if len(left_out) > 1 else None


def _is_usual(times: MeasuredTimes, cell: CellTime) -> bool:
    """Return whether the cell ran as its scope does. An eager step among graphs is slower by what
    the host takes, which no term describes.
    """
    return cell.mode is (Mode.EAGER if times.scope is Scope.EAGER else Mode.GRAPH)


def grid(times: MeasuredTimes) -> list[At]:
    """Return every k and power of two between the measured ones, and the measured batch sizes."""
    lengths = times.lengths
    found = []
    for context in times.contexts:
        sizes = times.batch_sizes(context)
        powers = {2**i for i in range(21) if sizes[0] <= 2**i <= sizes[-1]}
        for size in sorted(powers | {*sizes}):
            found += [At(context, size, k) for k in range(lengths[0], lengths[-1] + 1)]
    return found


def _holds(cells: Sequence[CellTime], at: At, requests: int) -> bool:
    """Check that ``at`` lies between ``cells`` in every direction, its tokens too."""
    sides = zip(*(cell.at for cell in cells), strict=True)
    tokens = [_tokens(cell.at, cell.bucket) for cell in cells]
    inside = all(min(side) <= value <= max(side) for side, value in zip(sides, at, strict=True))
    return inside and min(tokens) <= _tokens(at, requests) <= max(tokens)


def _left_out(cells: Sequence[CellTime]) -> Iterator[float]:
    """Yield the errors of the cells between others. Outside of them nothing is predicted."""
    tokens = [_tokens(cell.at, cell.bucket) for cell in cells]
    terms: dict[tuple[float, ...], Floats] = {}
    for i, cell in enumerate(cells):
        others = [*cells[:i], *cells[i + 1 :]]
        if not _holds(others, cell.at, cell.bucket):
            continue
        # Most cells leave the knots as they are, and every other cell's terms with them.
        knots = _knots(sorted({*tokens[:i], *tokens[i + 1 :]}))
        of_all = _once(terms, cells, knots)
        weights = _weights(np.delete(of_all, i, axis=0))
        yield log(float(of_all[i] @ weights))


def _once(
    terms: dict[tuple[float, ...], Floats], cells: Sequence[CellTime], knots: Floats
) -> Floats:
    key = tuple(knots)
    if key not in terms:
        terms[key] = _relative_terms(cells, knots)
    return terms[key]


def _fit(cells: Sequence[CellTime]) -> tuple[Floats, Floats]:
    knots = _knots(sorted({_tokens(cell.at, cell.bucket) for cell in cells}))
    return knots, _weights(_relative_terms(cells, knots))


def _relative_terms(cells: Sequence[CellTime], knots: Floats) -> Floats:
    """Return each cell's terms over its seconds, ``[cells, terms]``."""
    return np.array([_terms(cell.at, cell.bucket, knots) / cell.seconds for cell in cells])


def _weights(matrix: Floats) -> Floats:
    """Return the weights, 0 or more, that bring every row's sum as near to 1 as they can."""
    # Its import takes a tenth of a second, and only this function needs it.
    from scipy.optimize import nnls

    scale = matrix.max(axis=0)
    scale[scale == 0] = 1.0
    weights, _ = nnls(matrix / scale, np.ones(len(matrix)))
    return np.asarray(weights / scale, dtype=np.float64)


def _knots(tokens: Sequence[int]) -> Floats:
    """Return the first and last of the measured numbers of tokens, and some that lie apart."""
    apart = [tokens[0]]
    for each in tokens[1:]:
        if each >= KNOT_RATIO * apart[-1]:
            apart.append(each)
    return np.array([*apart, tokens[-1]] if apart[-1] < tokens[-1] else apart, dtype=np.float64)


def _tokens(at: At, requests: int) -> int:
    return requests * (at.spec_tokens + 1)


def _terms(at: At, requests: int, knots: Floats) -> Floats:
    """Return the terms that a cell's time is the weighted sum of.

    ``requests`` are those of its graph.
    """
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
