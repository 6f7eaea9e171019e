"""Merge several runs of one command: samples side by side, each cell at its worst status."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cgbench.rundir.files import Tables
from cgbench.rundir.floor_verdict import with_floor_verdicts
from cgbench.rundir.record_parts import Resumed
from cgbench.rundir.store import RunDirectory, ToMarkdown
from cgbench.rundir.summary import CELL, with_timings
from cgbench.words import Status

# The worst status comes first. A cell that failed once is not sound, however the other processes
# ended.
SEVERITY = (
    Status.AUDIT_FAILED,
    Status.OOM,
    Status.FLOOR_BEATEN,
    Status.DISTURBED,
    Status.OK,
)
FAILED = (Status.AUDIT_FAILED, Status.OOM)

OF_THE_FIRST = ("tokens_sha256", "mean_acceptance_length", "acceptance_rate_per_pos")
"""The columns of a row that come from the generate pass, as the acceptance and the kept
tokens do.
"""


def merge_runs(
    parts: Sequence[RunDirectory],
    path: Path,
    to_markdown: ToMarkdown,
    resumed: Sequence[Resumed] = (),
) -> RunDirectory:
    """Write ``parts``, complete runs with the same arguments, to ``path`` as one finished run.

    ``resumed`` is put into its record, before the entries of the parts' records. Tokens, acceptance
    and capture costs are the first's, because they are the same work done again. Products with rows
    added are those of every part, because each chooses by timing. A warning names the cells whose
    tokens differ.
    """
    rows = pd.concat([part.latency() for part in parts], ignore_index=True)
    facts = _worst_rows(rows)
    samples = _side_by_side([part.samples() for part in parts])
    failed = pd.MultiIndex.from_frame(facts.loc[facts["status"].isin(FAILED), CELL])
    samples = samples[~_cells(samples).isin(failed)].reset_index(drop=True)
    acceptance = parts[0].acceptance()
    acceptance.loc[_cells(acceptance).isin(failed), ["drafted", "accepted"]] = 0
    first = parts[0].record
    warnings = [line for part in parts for line in part.record.warnings]
    of_parts: list[Resumed] = [
        {**entry, "process": number}
        for number, part in enumerate(parts)
        for entry in part.record.resumed
    ]
    record = replace(
        first,
        arguments={**first.arguments, "processes": len(parts)},
        warnings=[*dict.fromkeys([*warnings, *_token_warnings(rows)])],
        resumed=[*resumed, *of_parts],
        capture={**first.capture},
        complete=False,
    )
    for part in parts[1:]:
        record.add_padded_products(part.record.padded_products)
    directory = RunDirectory(path, record)
    merged = Tables(
        latency=with_floor_verdicts(with_timings(facts, samples), record),
        samples=samples,
        blocks=_side_by_side([part.blocks() for part in parts]),
        acceptance=acceptance,
        capture=parts[0].capture(),
        tokens=parts[0].tokens(),
    )
    directory.write_merged(merged)
    directory.finish(to_markdown)
    return directory


def _worst_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a cell, in the first run's order.

    It is the row of the worst status, with the most memory and the discarded blocks of all. Tokens
    and acceptance are the first run's.
    """
    by_cell = rows.groupby(CELL, sort=False)
    together = by_cell.agg(
        discarded_blocks=("discarded_blocks", "sum"),
        peak_memory_bytes=("peak_memory_bytes", "max"),
        mean_context_len=("mean_context_len", "mean"),
    )
    together = together.join(rows.drop_duplicates(CELL).set_index(CELL)[[*OF_THE_FIRST]])
    severity = rows["status"].map({status.value: i for i, status in enumerate(SEVERITY)})
    worst = rows.assign(severity=severity).sort_values("severity", kind="stable")
    worst = worst.drop_duplicates(CELL).set_index(CELL).reindex(together.index)
    is_failed = worst["status"].isin(FAILED)
    for name in together:
        worst[name] = together[name].mask(is_failed)
    return worst.drop(columns="severity").reset_index()


def _side_by_side(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    numbered = [frame.assign(process=number) for number, frame in enumerate(frames)]
    return pd.concat(numbered, ignore_index=True)


def _cells(frame: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_frame(frame[CELL])


def _token_warnings(rows: pd.DataFrame) -> list[str]:
    hashes = rows.dropna(subset="tokens_sha256").groupby(CELL, sort=False)["tokens_sha256"]
    differing = hashes.nunique().loc[lambda count: count > 1]
    return [
        f"tokens differ between processes: {scope} k={k}, batch size {batch_size}"
        for scope, k, batch_size in differing.index
    ]
