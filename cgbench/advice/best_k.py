"""Find the k with most tokens a second at each batch size, and every k that may be as good."""

from dataclasses import dataclass
from itertools import combinations

from cgbench.advice.bounded import Bounded, bounded
from cgbench.advice.cell_times import CellTime, Group, MeasuredTimes, log_ratio
from cgbench.advice.lengths import Lengths
from cgbench.statistics import Estimate, difference


@dataclass(frozen=True, slots=True)
class Best:
    """A ``Best`` names the best k at one batch size and context, and those that may be as good.

    ``k`` has the most tokens a second of those measured. ``tied`` are the others that it does not
    lead by the least effect that counts. ``vs_none`` is its tokens a second over those of k = 0, if
    that was measured.
    """

    group: Group
    k: int
    tied: tuple[int, ...]
    vs_none: Bounded | None

    @property
    def good(self) -> frozenset[int]:
        """Return every k that may be the best."""
        return frozenset((self.k, *self.tied))

    @property
    def is_told(self) -> bool:
        """Check that the data separates the best k from every other."""
        return not self.tied


def best_of_groups(
    times: MeasuredTimes, lengths: Lengths, confidence: float, min_effect: float
) -> list[Best]:
    """Return the best k of each batch size and context at which two k or more have a known length.

    A k is separated from the best if its loss is over ``min_effect``, all of the interval. Another
    run may differ by a smaller loss, and blocks of one run do not show that. The intervals of all
    pairs of k at all batch sizes hold together at ``confidence``, because the best is picked by
    looking at them.
    """
    groups = {group: _known(times, lengths, group) for group in times.groups}
    num_pairs = sum(len([*combinations(cells, 2)]) for cells in groups.values())
    return [
        _best(group, cells, lengths, confidence, min_effect, num_pairs)
        for group, cells in groups.items()
        if len(cells) > 1
    ]


def log_gain(better: CellTime, worse: CellTime, lengths: Lengths) -> Estimate:
    """Estimate the logarithm of the tokens a second of one k over another's."""
    lengthened = _log_lengthened(better.at.spec_tokens, worse.at.spec_tokens, lengths)
    return difference(lengthened, log_ratio(better, worse))


def _log_lengthened(k: int, other: int, lengths: Lengths) -> Estimate:
    ours, theirs = lengths.log_of(k), lengths.log_of(other)
    assert ours and theirs
    return difference(ours, theirs)


def _known(times: MeasuredTimes, lengths: Lengths, group: Group) -> dict[int, CellTime]:
    cells = times.of_group(group)
    return {k: cell for k, cell in cells.items() if lengths.log_of(k) is not None}


def _best(
    group: Group,
    cells: dict[int, CellTime],
    lengths: Lengths,
    confidence: float,
    min_effect: float,
    num_pairs: int,
) -> Best:
    k = max(cells, key=lambda each: log_gain(cells[each], cells[min(cells)], lengths).value)
    over = {
        other: bounded(log_gain(cells[k], cell, lengths), confidence, num_pairs)
        for other, cell in cells.items()
        if other != k
    }
    tied = tuple(other for other, gain in over.items() if gain.low <= 1 + min_effect)
    return Best(group, k, tied, over.get(0) if k else Bounded(1.0, 1.0, 1.0))
