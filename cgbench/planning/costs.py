"""Describe what an iteration costs, in a graph and without one, and what a graph costs to have.

Measured costs come from a run directory (``cgbench.rundir.run_costs``). Without a measurement an
iteration costs its tokens, padding included. That is right if the device is busy, and too steep if
it waits for memory. Eager then costs ``EAGER_PENALTY`` times as much.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from cgbench.errors import PlanError

EAGER_PENALTY = 5.0
"""An eager iteration takes this many times a captured one, in the default costs. Users reported
decode that fell out of its graphs. It gave 25.3 instead of 133.3 tokens/s, 5.3 times slower (vLLM
issue 54933). Another report is 7.5 times (vllm-ascend pull request 16623). This is the round number
below them."""

_PENALTIES = (1e-6, 1e6)

DRAFT_SHARE = 0.07
"""A token of a draft step costs this share of a verify token, if nothing was measured. It stands
for one layer and lm_head over a whole model. On MiMo-7B's shape draft 1 took 0.66 ms and verify
took 9.4 ms (one H200)."""


@dataclass(frozen=True)
class Curve:
    """A ``Curve`` gives a cost for every batch size, linear between measured points.

    Points ascend in batch size. Below the first point the curve is flat, because small batches wait
    for the weights. Above the last it goes on with the slope of the last two points. It stays flat
    there if there is one point or the slope falls.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        assert self.points
        assert all(left[0] < right[0] for left, right in pairwise(self.points))

    def __call__(self, batch_size: int) -> float:
        index = bisect_right(self.points, batch_size, key=lambda point: point[0])
        if index == 0 or len(self.points) == 1:
            return self.points[0][1]
        is_beyond = index == len(self.points)
        (x0, y0), (x1, y1) = self.points[index - 2 : index] if is_beyond else self._around(index)
        slope = (y1 - y0) / (x1 - x0)
        if is_beyond:
            return y1 + max(slope, 0.0) * (batch_size - x1)
        return y0 + slope * (batch_size - x0)

    def _around(self, index: int) -> tuple[tuple[int, float], ...]:
        return self.points[index - 1 : index + 1]


@dataclass(frozen=True)
class Drafts:
    """A ``Drafts`` holds what all draft steps of an iteration cost together, as ``Costs`` counts
    them.
    """

    graph: Curve
    eager: Curve


@dataclass(frozen=True)
class Costs:
    """A ``Costs`` holds the costs of iterations and graphs by batch size, at one k.

    ``unit`` names what the costs of an iteration are counted in. ``graph`` goes by the bucket's
    size and ``eager`` by the batch's own. ``memory_bytes`` and ``capture_s`` are those of capturing
    one bucket, all its graphs together. They are None if they are not known. ``drafts`` is the part
    of an iteration that its draft steps take, None if it was not measured. ``acceptance_length`` is
    the mean number of tokens that a request gets in an iteration.
    """

    unit: str
    graph: Curve
    eager: Curve
    memory_bytes: Curve | None = None
    capture_s: Curve | None = None
    drafts: "Drafts | None" = None
    acceptance_length: float | None = None

    @classmethod
    def in_tokens(cls, query_len: int, eager_penalty: float = EAGER_PENALTY) -> "Costs":
        """Return the default costs: an iteration costs its tokens, and ``eager_penalty`` times that
        eager.

        Raise ``PlanError`` for a penalty below 1e-6 or above 1e6.
        """
        least, most = _PENALTIES
        if not least <= eager_penalty <= most:
            raise PlanError(
                f"--eager-penalty {eager_penalty}: must be a number above 0, "
                f"from {least:g} to {most:g}"
            )
        eager = query_len * eager_penalty
        return cls("tokens", _proportional(query_len), _proportional(eager))


def _proportional(slope: float) -> Curve:
    return Curve(((1, slope), (2, 2 * slope)))
