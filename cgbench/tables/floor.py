"""Show what each floor is made of, and what was measured beside it, for ``cgbench run
--explain``.
"""

from collections.abc import Iterator, Mapping
from itertools import groupby

import pandas as pd
from rich.table import Table
from rich.text import Text

from cgbench.floor.account import Account, FloorLine, account_stage
from cgbench.floor.rates import DeviceLimits
from cgbench.rundir.record import RunRecord
from cgbench.rundir.summary import BLOCK
from cgbench.tables.fit import fitted_table
from cgbench.words import Stage

COLUMNS = (
    *("stage", "what", "count", "experts read", "expected"),
    *("bytes [MB]", "operations [GFLOP]", "bound by"),
    *("floor [ms]", "measured [ms]", "floor / measured"),
)
TEXTS = ("stage", "what", "bound by")

CAPTION = (
    "read {read:,.1f} GB/s, matrices {rate:,.1f} GFLOP/s{fp8}, measured in this run, "
    "{context:.1f} tokens of KV a request"
)


def account_tables(record: RunRecord, samples: pd.DataFrame, width: int) -> Iterator[Table]:
    """Yield a table for each k and batch size, from a run's record and its raw samples, for
    ``width`` characters.
    """
    for account in record.accounts:
        assert record.limits is not None
        yield account_table(account, record.limits, samples, width)


def account_table(
    account: Account, limits: DeviceLimits, samples: pd.DataFrame, width: int
) -> Table:
    """Return a table with a line for each product or attention, then the stage's sum beside its
    measured time.
    """
    title = f"floor: k {account.spec_tokens}, batch size {account.batch_size}, {account.scope}"
    fp8 = limits.fp8_flops_per_s
    caption = CAPTION.format(
        read=limits.read_bytes_per_s / 1e9,
        rate=limits.flops_per_s / 1e9,
        fp8="" if fp8 is None else f" ({fp8 / 1e9:,.1f} in FP8)",
        context=account.context_len,
    )
    rows = [*_rows(account, measured_seconds(account, samples))]
    table = fitted_table(title, COLUMNS, rows, width, names=TEXTS)
    table.caption = Text(caption)
    for row in rows:
        table.add_row(*row)
        if row[1] == "":
            table.add_section()
    return table


def measured_seconds(account: Account, samples: pd.DataFrame) -> dict[Stage, float]:
    """Return the median seconds of the account's stages, drafts 2..k summed, and of the iteration.

    The iteration is the timed pass's, so the stages need not add up to it.
    """
    is_cell = (
        (samples["scope"] == account.scope)
        & (samples["spec_tokens"] == account.spec_tokens)
        & (samples["batch_size"] == account.batch_size)
    )
    cell = samples[is_cell]
    stages = {
        name: str(account_stage(Stage.parse(name), account.spec_tokens))
        for name in cell["stage"].unique()
    }
    stage = cell["stage"].map(stages)
    per_iteration = cell.groupby([*BLOCK, "iteration", stage])["gpu_s"].sum()
    medians = per_iteration.groupby("stage").median()
    return {Stage.parse(str(name)): float(seconds) for name, seconds in medians.items()}


def _rows(account: Account, measured: Mapping[Stage, float]) -> Iterator[tuple[str, ...]]:
    for stage, lines in groupby(account.lines, lambda line: line.stage):
        of_stage = list(lines)
        yield from map(_line_row, of_stage)
        yield _sum_row(stage, of_stage, measured)
        if stage == Stage.VERIFY:
            yield _sum_row(Stage.ACCEPT, [], measured)
    yield _sum_row(Stage.COMMIT, [], measured)
    yield _sum_row(Stage.ITERATION, list(account.lines), measured)


def _line_row(line: FloorLine) -> tuple[str, ...]:
    amounts = _amounts([line])
    floor = _milliseconds(line.seconds)
    experts = (_experts(line.experts_read), _experts(line.experts_expected))
    return (
        *(str(line.stage), line.what, str(line.count)),
        *experts,
        *amounts,
        *(line.bound_by, floor, "", ""),
    )


def _sum_row(
    stage: Stage, lines: list[FloorLine], measured: Mapping[Stage, float]
) -> tuple[str, ...]:
    """Return a stage's sums. Accept and commit have no product and no attention, so they have no
    floor.
    """
    measured_s = measured.get(stage)
    taken = "" if measured_s is None else _milliseconds(measured_s)
    if not lines:
        return (str(stage), *[""] * 8, taken, "")
    floor_s = sum(line.seconds for line in lines)
    share = f"{floor_s / measured_s:.0%}" if measured_s else ""
    amounts = _amounts(lines)
    return (str(stage), "", "", "", "", *amounts, "", _milliseconds(floor_s), taken, share)


def _experts(count: float | None) -> str:
    return "" if count is None else f"{count:,.1f}"


def _amounts(lines: list[FloorLine]) -> tuple[str, str]:
    num_bytes, flops = (
        sum(getattr(line, name) for line in lines) for name in ("num_bytes", "flops")
    )
    return f"{num_bytes / 1e6:,.1f}", f"{flops / 1e9:,.3f}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4f}"
