"""Draw one iteration on a time line: eager, three graphs, one graph.

    python scripts/trials/draw_iteration.py results/h200/default-k3 --output docs/iteration.svg

Every length is a median of the run's samples at one k and batch size. Stages come from the
instrumented pass, so each bar is scaled to the iteration that was timed.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from cgbench.rundir.store import RunDirectory

LEFT, WIDTH, ROW = 150, 620, 26
COLOURS = {"verify": "#3b6fb6", "accept": "#9aa5b1", "draft": "#e0913a", "commit": "#5d6773"}
GRAPHS: dict[str, list[tuple[str, ...]]] = {
    "eager": [],
    "phase": [("verify", "accept"), ("draft_1",), ("draft_2", "draft_3", "commit")],
    "iteration": [("verify", "accept", "draft_1", "draft_2", "draft_3", "commit")],
}
TITLES = {"eager": "eager", "phase": "three graphs", "iteration": "one graph"}


@dataclass(frozen=True)
class Bar:
    """One iteration of a scope, in milliseconds."""

    scope: str
    total_ms: float
    stages_ms: dict[str, float]

    def spans(self) -> Iterator[tuple[str, float, float]]:
        """Each stage with its start and its length, scaled to the whole."""
        scale = self.total_ms / sum(self.stages_ms.values())
        start = 0.0
        for name, length in self.stages_ms.items():
            yield name, start, length * scale
            start += length * scale


def bars(samples: pd.DataFrame, spec_tokens: int, batch_size: int) -> list[Bar]:
    """The iteration of every scope that the run has."""
    chosen = samples.query("spec_tokens == @spec_tokens and batch_size == @batch_size")
    medians = chosen.groupby(["scope", "stage"])["gpu_s"].median() * 1e3
    drafts = [f"draft_{step}" for step in range(1, spec_tokens + 1)]
    stages = ["verify", "accept", *drafts, "commit"]
    return [
        Bar(scope, medians[scope, "iteration"], {each: medians[scope, each] for each in stages})
        for scope in GRAPHS
    ]


def picture(found: list[Bar], words: str) -> str:
    """The SVG: all bars on one scale, then the captured ones on a larger one."""
    longest, captured = found[0].total_ms, found[1:]
    lines = [*scale_row("all on one scale", 58, longest)]
    for index, bar in enumerate(found):
        lines += row(bar, 70 + index * 40, WIDTH / longest)
    largest = max(bar.total_ms for bar in captured)
    lines += scale_row("the graphs alone", 222, largest)
    for index, bar in enumerate(captured):
        lines += row(bar, 234 + index * 48, WIDTH / largest)
    return SVG.format(body="\n".join(lines), words=escape(words), legend="\n".join(legend()))


def scale_row(words: str, y: int, longest_ms: float) -> list[str]:
    """A heading with the length of the scale below it."""
    end = LEFT + WIDTH
    return [
        f'<text x="{LEFT}" y="{y - 6}" class="small">0 ms, {words}</text>',
        f'<text x="{end}" y="{y - 6}" class="small" text-anchor="end">{longest_ms:.2f} ms</text>',
        f'<line x1="{LEFT}" y1="{y}" x2="{end}" y2="{y}" stroke="#9aa5b1"/>',
    ]


def row(bar: Bar, y: int, pixels_per_ms: float) -> Iterator[str]:
    """A bar with its stages, its graphs as outlines, its name and its time."""
    yield f'<text x="{LEFT - 12}" y="{y + 18}" text-anchor="end">{TITLES[bar.scope]}</text>'
    spans = {name: (start, length) for name, start, length in bar.spans()}
    for name, (start, length) in spans.items():
        colour = COLOURS[name.partition("_")[0]]
        x, width = LEFT + start * pixels_per_ms, length * pixels_per_ms
        yield (
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}" fill="{colour}" '
            f'stroke="white" stroke-width="0.5"/>'
        )
    for graph in GRAPHS[bar.scope]:
        x = LEFT + spans[graph[0]][0] * pixels_per_ms
        width = LEFT + sum(spans[graph[-1]]) * pixels_per_ms - x
        yield (
            f'<rect x="{x:.1f}" y="{y - 3}" width="{width:.1f}" height="{ROW + 6}" fill="none" '
            f'stroke="#c0392b" stroke-width="1.6" rx="3"/>'
        )
    end = LEFT + bar.total_ms * pixels_per_ms
    is_short = end < LEFT + WIDTH / 2
    x, anchor = (end + 10, "start") if is_short else (end - 8, "end")
    colour = "#1f2933" if is_short else "white"
    yield (
        f'<text x="{x:.1f}" y="{y + 18}" text-anchor="{anchor}" fill="{colour}">'
        f"{bar.total_ms:.3f} ms</text>"
    )


def legend() -> Iterator[str]:
    """A square for each kind of stage, and an outline for a graph."""
    entries = [("verify", "verify k + 1 tokens"), ("accept", "accept"), ("draft", "draft steps")]
    x = LEFT
    for name, words in [*entries, ("commit", "commit")]:
        yield f'<rect x="{x}" y="342" width="12" height="12" fill="{COLOURS[name]}"/>'
        yield f'<text x="{x + 17}" y="353" class="small">{words}</text>'
        x += 40 + 7 * len(words)
    yield (
        f'<rect x="{x}" y="342" width="12" height="12" fill="none" stroke="#c0392b" '
        f'stroke-width="1.6"/><text x="{x + 17}" y="353" class="small">a graph: one launch</text>'
    )


SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 370" font-family="sans-serif" \
font-size="14" fill="#1f2933">
<style>.small {{ font-size: 12px; fill: #3e4c59 }}</style>
<rect width="800" height="370" fill="white"/>
<text x="20" y="24" font-size="15">{words}</text>
{body}
{legend}
</svg>
"""


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description="Draw one iteration on a time line, as an SVG.")
    parser.add_argument("run", type=Path, help="run directory with scopes eager, phase, iteration")
    parser.add_argument("--output", type=Path, required=True, help="SVG to write")
    parser.add_argument("--spec-tokens", type=int, default=3, help="k of the iteration")
    parser.add_argument("--batch-size", type=int, default=1, help="its requests")
    arguments = parser.parse_args()
    arguments.output.write_text(
        drawn(arguments.run, arguments.spec_tokens, arguments.batch_size), encoding="utf-8"
    )


def drawn(run: Path, spec_tokens: int = 3, batch_size: int = 1) -> str:
    """The picture of a run directory."""
    directory = RunDirectory.open(run)
    found = bars(directory.samples(), spec_tokens, batch_size)
    model, gpu = directory.record.model["label"], directory.record.environment["gpu"]
    words = f"One iteration: model {model}, {gpu}, k = {spec_tokens}, batch {batch_size}"
    return picture(found, words)


if __name__ == "__main__":
    main()
