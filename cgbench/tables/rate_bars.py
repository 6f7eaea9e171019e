"""Draw tokens a second as bars in the terminal: the shape of a run at a glance."""

import pandas as pd
from rich.bar import Bar
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from cgbench.words import Scope, Status

MAX_BARS = 24
"""The most bars that are drawn. More of them belong in a table."""

BAR_WIDTH = 40


def rate_bars(frame: pd.DataFrame) -> Table | None:
    """Return a bar for each batch size and k of the best scope. Return None without rows or with
    too many.
    """
    rows = frame[frame["output_tok_per_s"].notna() & (frame["status"] == Status.OK.value)]
    measured = set(rows["scope"].tolist())
    order = (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
    scope = next((each.value for each in order if each.value in measured), None)
    shown = rows[rows["scope"] == scope].sort_values(["batch_size", "spec_tokens"], kind="stable")
    if not 0 < len(shown) <= MAX_BARS:
        return None
    most = float(shown["output_tok_per_s"].max())
    table = Table(title=Text(f"tok/s, scope {scope}"), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("batch", "k", "tok/s"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in shown.to_dict("records"):
        rate = float(row["output_tok_per_s"])
        table.add_row(
            str(row["batch_size"]),
            str(row["spec_tokens"]),
            f"{rate:,.0f}",
            Bar(most, 0, rate, width=BAR_WIDTH),
        )
    return table
