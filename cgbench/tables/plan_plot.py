"""Draw padding by batch size, a line a policy, with the holes where decode runs eager.

matplotlib is the extra ``plot`` and is imported here alone, when a picture is asked for.
"""

import io
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.errors import BadInputError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.study import Outcome
from cgbench.tables.plan_cells import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".html")


def check_plot(file: Path) -> None:
    """Refuse early what ``write_plot`` could not write. Raise ``BadInputError``."""
    if file.suffix not in FORMATS:
        raise BadInputError(f"--plot {file}: must end in {', '.join(FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise BadInputError(f"--plot {file}: no such folder")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInputError("--plot needs matplotlib: pip install 'cgbench[plot]'") from error


def write_plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """Write the picture. HTML holds it as SVG, in one file.

    Raise ``BadInputError`` if the file cannot be written.
    """
    figure = draw([each.plan for each in outcomes if each.plan])
    try:
        if file.suffix == ".html":
            file.write_text(_html(figure), encoding="utf-8")
        else:
            figure.savefig(file, dpi=150)
    except OSError as error:
        raise BadInputError(f"--plot {file}: {error.strerror}") from error


def draw(plans: Sequence[CapturePlan]) -> "Figure":
    """Return a figure with a panel a plan: padding as steps, eager batch sizes shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 1.3 * len(plans)), layout="constrained")
    panels = figure.subplots(len(plans), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, plan in zip(panels, plans, strict=True):
        sizes = range(1, plan.max_batch_size + 1)
        axes.step(sizes, [_padding(plan, size) for size in sizes], where="mid", linewidth=1)
        for span in plan.eager_spans:
            axes.axvspan(span.first - 0.5, span.last + 0.5, color="tab:red", alpha=0.25)
        axes.set_title(_title(plan), loc="left", fontsize=9)
        axes.set_ylabel("padding [%]", fontsize=8)
        axes.set_xlim(0.5, plan.max_batch_size + 0.5)
    # One scale for all panels, set once every line is drawn.
    panels[0].set_ylim(bottom=0, top=100)
    panels[-1].set_xlabel("batch size [requests], red: no graph, eager")
    return figure


def _padding(plan: CapturePlan, batch_size: int) -> float:
    """Return the padding in per cent. It is NaN if there is no graph, which leaves a gap in the
    line.
    """
    bucket = plan.bucket_for(batch_size)
    return 100 * bucket.padding_frac(batch_size) if bucket else nan


def _title(plan: CapturePlan) -> str:
    return (
        f"{plan.policy}, k = {plan.spec_tokens}: {counted(len(plan.buckets), 'graph')}, "
        f"{plan.eager_batch_sizes} of {plan.max_batch_size} batch sizes eager"
    )


def _html(figure: "Figure") -> str:
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    picture = svg.getvalue()
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>cgbench plan: padding by batch size</title>\n{picture[picture.index('<svg') :]}\n"
        "</html>\n"
    )
