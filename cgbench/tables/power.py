"""Write how many requests a comparison needs, for people."""

from collections.abc import Sequence
from pathlib import Path

from cgbench.gate.sample_sizes import SampleSize, Wanted
from cgbench.tables.part import Part

HEADINGS = ("metric", "requests in FILE", "noise of one", "detects", "requests a side")


def sizes_part(path: Path, wanted: Wanted, sizes: Sequence[SampleSize]) -> Part:
    """Return the table of sample sizes, with a row for each metric."""
    title = (
        f"{path}: {100 * wanted.effect:g} % detected in {100 * wanted.power:g} % of comparisons, "
        f"minimum effect {100 * wanted.min_effect:g} %, confidence {100 * wanted.confidence:g} %"
    )
    rows = tuple(
        (
            size.metric,
            f"{size.requests:,}",
            f"{100 * size.noise:.1f} %",
            f"{100 * size.detectable:.1f} %",
            f"{size.needed:,}",
        )
        for size in sizes
    )
    return Part(title, HEADINGS, rows, left=("metric",))
