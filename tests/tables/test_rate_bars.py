"""The terminal's bars."""

from rich.console import Console

from cgbench.tables.rate_bars import MAX_BARS, rate_bars
from tests.support.recorded import recorded

BLOCKS = {*"▏▎▍▌▋▊▉█"}


def test_the_fastest_cell_has_the_longest_bar() -> None:
    frame = recorded("mimo-7b-k3-compiled").latency()
    table = rate_bars(frame)
    assert table is not None and "scope iteration" in str(table.title)
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = [line for line in capture.get().splitlines() if set(line) & BLOCKS]
    bars = {line.split()[2]: sum(line.count(block) for block in BLOCKS) for line in lines}
    assert len(bars) == 6 and max(bars.values()) == 40
    rates = sorted(bars, key=lambda rate: float(rate.replace(",", "")))
    assert [bars[rate] for rate in rates] == sorted(bars.values())


def test_too_many_cells_are_no_glance() -> None:
    frame = recorded("qwen3.5-0.8b-k0123").latency()
    assert (frame["scope"] == "iteration").sum() > MAX_BARS
    assert rate_bars(frame) is None
