"""Draw the report's charts with matplotlib, inlined as SVG.

Text stays text, in the page's own font, and takes the page's colour. So one drawing serves a light
and a dark page, and a reader can select its text. matplotlib is the extra ``plot``.
"""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from cgbench.gate.intervals import rate_estimate
from cgbench.statistics import CONFIDENCE
from cgbench.tables.report.report_runs import ReportRuns
from cgbench.words import PIECES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cgbench.advice.break_even import BreakEven

Draw = Callable[["Axes"], None]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255")
"""Okabe and Ito's colours, which readers with any colour vision can distinguish, and two of
Tol's.
"""

MARKERS = "osD^vP*X"

INK = "#010203"
"""A colour that nothing else has. The page puts its own in its place."""

MAX_BARS = 32
"""The most bars of a chart of horizontal bars."""

ROOM_IN_BARS = 0.3
"""The room above the first of them, and below the last."""

WIDTH_IN, HEIGHT_IN = 7.5, 3.6

LEGEND_ROW_IN, CHARACTER_IN = 0.18, 0.078
LEAST_LEFT_IN, BELOW_IN, ABOVE_IN, RIGHT_IN = 0.65, 0.5, 0.12, 0.15
MOST_TICKS = 14
"""More batch sizes than these would be written over one another."""


def svg_of(draw: Draw, title: str, prefix: str, height_in: float = HEIGHT_IN) -> str:
    """Return the drawing as an SVG element. ``prefix`` keeps its ids apart from another
    drawing's.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[str, object] = {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
    }
    with matplotlib.rc_context(cast(Any, settings)):
        figure = Figure(figsize=(WIDTH_IN, height_in))
        axes = figure.subplots()
        axes.grid(alpha=0.15)
        # Otherwise the grid crosses bars.
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        _set_margins(axes, height_in)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _inline(file.getvalue(), title, prefix)


def _set_margins(axes: "Axes", height_in: float) -> None:
    """Give the axes their room, and the legend above them as much more as its rows take.

    matplotlib's own layouts measure every text, which takes as long as drawing. The page's font is
    another one anyway.
    """
    figure = cast("Figure", axes.figure)
    legend_in = figure.get_figheight() - height_in
    longest = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
    left_in = min(max(LEAST_LEFT_IN, 0.15 + longest * CHARACTER_IN), WIDTH_IN / 2)
    whole_in = figure.get_figheight()
    figure.subplots_adjust(
        left=left_in / WIDTH_IN,
        right=1 - RIGHT_IN / WIDTH_IN,
        bottom=BELOW_IN / whole_in,
        top=1 - (legend_in + ABOVE_IN) / whole_in,
    )


def _inline(text: str, title: str, prefix: str) -> str:
    """Return only the element, named for a screen reader, with ids of its own and the
    page's ink.
    """
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"(url\(#|href=\"#)", rf"\1{prefix}-", svg)
    named = f'<svg role="img" aria-label="{escape(title)}" class="chart" viewBox='
    return re.sub(r"^<svg .*?viewBox=", named, svg, count=1, flags=re.DOTALL)


def latency_chart(runs: ReportRuns) -> Draw:
    """Return a chart of iteration latency by batch size, with a line a scope. It has each run's
    largest k.
    """

    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import LogLocator

        style = count()
        rows = runs.drawn if runs.is_one else runs.best
        largest = rows.groupby("run")["spec_tokens"].transform("max")
        shown = rows[rows["spec_tokens"] == largest]
        for (name, scope, k, context), line in shown.groupby(
            ["run", "scope", "spec_tokens", "context_len"], sort=False
        ):
            text = f"{scope}, k = {k}, context {context}"
            _line(axes, line, runs.label(str(name), text), next(style))
        _by_batch(axes, runs.drawn["batch_size"])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylabel("iteration p50 [ms]")
        _legend(axes)

    return draw


def k_chart(runs: ReportRuns) -> Draw:
    """Return a chart of iteration latency by batch size, with a line a k. It has each run's best
    scope.
    """

    def draw(axes: "Axes") -> None:
        style = count()
        for (name, k, context), line in runs.best.groupby(
            ["run", "spec_tokens", "context_len"], sort=False
        ):
            _line(axes, line, runs.label(str(name), f"k = {k}, context {context}"), next(style))
        _by_batch(axes, runs.best["batch_size"])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("iteration p50 [ms]")
        _legend(axes)

    return draw


def anatomy_chart(runs: ReportRuns) -> Draw:
    """Return a chart of the stages of an iteration one after another, on a time line. It has a bar
    a batch size.
    """

    def draw(axes: "Axes") -> None:
        rows = anatomy_rows(runs)
        names = [
            runs.label(str(row["run"]), f"k = {row['spec_tokens']}, batch {row['batch_size']}")
            for row in rows.to_dict("records")
        ]
        left = np.zeros(len(rows))
        for piece, colour in zip(PIECES, COLOURS, strict=False):
            width = rows[f"{piece.value}_p50_ms"].fillna(0.0).to_numpy()
            axes.barh(names, width, left=left, label=piece.value, color=colour)
            left += width
        axes.plot(rows["iteration_p50_ms"], names, "|", color=INK, markersize=11, label="timed")
        _downwards(axes, len(rows))
        axes.set_xlabel("time within an iteration [ms], | is the iteration timed whole")
        _legend(axes, 5)

    return draw


def anatomy_rows(runs: ReportRuns) -> pd.DataFrame:
    """Return the rows of the largest k of each run's best scope, if stages were timed."""
    rows = runs.best
    largest = rows.groupby("run")["spec_tokens"].transform("max")
    return _few(rows[(rows["spec_tokens"] == largest) & rows["verify_p50_ms"].notna()])


def _few(rows: pd.DataFrame) -> pd.DataFrame:
    """Return at most as many rows as a chart has room for bars. More are cut to each run's smallest
    and largest batch.
    """
    if len(rows) <= MAX_BARS:
        return rows
    ends = rows.groupby("run")["batch_size"]
    return rows[rows["batch_size"].isin([*ends.min(), *ends.max()])]


def floor_chart(runs: ReportRuns) -> Draw:
    """Return a chart of the floor, and of what the iteration takes above it."""

    def draw(axes: "Axes") -> None:
        rows = floor_rows(runs)
        names = [
            runs.label(str(row["run"]), f"k = {row['spec_tokens']}, batch {row['batch_size']}")
            for row in rows.to_dict("records")
        ]
        floor = rows["floor_ms"].to_numpy()
        above = (rows["iteration_p50_ms"] - rows["floor_ms"]).clip(lower=0).to_numpy()
        axes.barh(names, floor, label="floor", color=COLOURS[2])
        axes.barh(names, above, left=floor, label="above the floor", color=COLOURS[4])
        _downwards(axes, len(rows))
        axes.set_xlabel("iteration p50 [ms]")
        _legend(axes)

    return draw


def floor_rows(runs: ReportRuns) -> pd.DataFrame:
    """Return the rows of k = 0 and the largest k of each run's best scope, if there is a floor."""
    rows = runs.best
    largest = rows.groupby("run")["spec_tokens"].transform("max")
    is_end = (rows["spec_tokens"] == largest) | (rows["spec_tokens"] == 0)
    return _few(rows[is_end & rows["floor_ms"].notna()])


def break_even_chart(runs: ReportRuns, found: Sequence[tuple[str, "BreakEven"]]) -> Draw:
    """Return a chart of the mean acceptance length that each k has to reach, with its interval."""

    def draw(axes: "Axes") -> None:
        lines: dict[str, list[BreakEven]] = {}
        for name, each in found:
            text = f"k = {each.at.spec_tokens}, context {each.at.context_len}"
            lines.setdefault(runs.label(name, text), []).append(each)
        for style, (label, points) in enumerate(lines.items()):
            sizes = [each.at.batch_size for each in points]
            middle = np.array([each.length.value for each in points])
            low, high = (
                np.array([getattr(each.length, end) for each in points]) for end in ("low", "high")
            )
            _bars(axes, sizes, middle, (middle - low, high - middle), label, style)
        _by_batch(axes, [each.at.batch_size for _, each in found])
        axes.set_ylabel("break-even acceptance length")
        _legend(axes)

    return draw


def padding_chart(runs: ReportRuns) -> Draw:
    """Return a chart of the bucket that each batch size runs in: a staircase above the line of no
    padding.
    """

    def draw(axes: "Axes") -> None:
        largest = 1
        for style, (name, run) in enumerate(runs):
            plan = run.record.plans[-1]
            buckets = sorted(plan["batch_sizes"])
            if not buckets:
                continue
            largest = max(largest, buckets[-1])
            sizes = np.arange(1, buckets[-1] + 1)
            held = np.take(buckets, np.searchsorted(buckets, sizes))
            colour = COLOURS[style % len(COLOURS)]
            label = runs.label(name, f"bucket at k = {plan['spec_tokens']}")
            axes.step(sizes, held, where="mid", label=label, color=colour)
        axes.plot([1, largest], [1, largest], color=INK, linewidth=0.8, label="no padding")
        axes.set_xlabel("batch size [requests]")
        axes.set_ylabel("bucket [requests]")
        _legend(axes)

    return draw


def acceptance_chart(runs: ReportRuns, found: Sequence[tuple[str, pd.DataFrame]]) -> Draw:
    """Return a chart of the acceptance of each draft position, unconditional, with its interval."""

    def draw(axes: "Axes") -> None:
        most = 1
        for style, (name, counts) in enumerate(found):
            rates = [
                rate_estimate(a, d)
                for a, d in zip(counts["accepted"], counts["drafted"], strict=True)
            ]
            values = np.array([each.value for each in rates])
            errors = np.array([each.half_width(CONFIDENCE) for each in rates])
            k = int(counts["spec_tokens"].iloc[0])
            positions = counts["position"].to_list()
            _bars(axes, positions, values, (errors, errors), runs.label(name, f"k = {k}"), style)
            most = max(most, *positions)
        axes.set_xticks(range(1, most + 1))
        axes.set_ylim(0, 1)
        axes.set_xlabel("draft position")
        axes.set_ylabel("accepted")
        _legend(axes)

    return draw


def acceptance_counts(runs: ReportRuns) -> list[tuple[str, pd.DataFrame]]:
    """Return, for each run, the counts of the cell of the largest k that decoded most rows."""
    found = []
    for name, run in runs:
        counts = run.tables.acceptance
        if len(counts):
            most = counts.sort_values(["spec_tokens", "drafted"]).iloc[-1]
            is_cell = (
                counts[["scope", "spec_tokens", "batch_size"]]
                == most[["scope", "spec_tokens", "batch_size"]]
            ).all(axis=1)
            found.append((name, counts[is_cell].sort_values("position")))
    return found


def _line(axes: "Axes", line: pd.DataFrame, label: str, style: int) -> None:
    middle = line["iteration_p50_ms"].to_numpy("float64")
    half = line["half_width_frac"].fillna(0.0).to_numpy("float64") * middle
    _bars(
        axes,
        line["batch_size"].to_list(),
        middle,
        (np.minimum(half, 0.99 * middle), half),
        label,
        style,
    )


def _bars(
    axes: "Axes",
    x: Sequence[int],
    y: np.ndarray,
    errors: tuple[np.ndarray, np.ndarray],
    label: str,
    style: int,
) -> None:
    axes.errorbar(
        x,
        y,
        yerr=errors,
        label=label,
        color=COLOURS[style % len(COLOURS)],
        marker=MARKERS[style % len(MARKERS)],
        markersize=4,
        linewidth=1.2,
        capsize=3,
    )


def _downwards(axes: "Axes", num_bars: int) -> None:
    """Put the first bar at the top, and as much room around any number of bars."""
    axes.margins(y=ROOM_IN_BARS / num_bars)
    axes.invert_yaxis()


def _legend(axes: "Axes", columns: int = 3) -> None:
    """Put the legend above the drawing, where it covers no line, and make the figure higher by its
    rows.
    """
    labels = axes.get_legend_handles_labels()[1]
    longest_in = 0.5 + max(map(len, labels), default=0) * CHARACTER_IN * 8 / 9
    columns = max(1, min(columns, int((WIDTH_IN - LEAST_LEFT_IN) / longest_in)))
    figure = cast("Figure", axes.figure)
    figure.set_figheight(figure.get_figheight() + -(-len(labels) // columns) * LEGEND_ROW_IN)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.3,
        fontsize=8,
        frameon=False,
        ncols=columns,
        labelspacing=0.3,
    )


def _by_batch(axes: "Axes", sizes: Sequence[int] | pd.Series) -> None:
    ticks = sorted(set(sizes))
    if len(ticks) > MOST_TICKS:
        ticks = [2**i for i in range(ticks[-1].bit_length()) if ticks[0] <= 2**i <= ticks[-1]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(size) for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("batch size [requests]")
