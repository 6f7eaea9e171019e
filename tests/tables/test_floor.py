"""``--explain``: the account as a person reads it, beside what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from cgbench.floor.account import Account, FloorLine, account_stage
from cgbench.floor.rates import DeviceLimits
from cgbench.rundir.record import RunRecord
from cgbench.rundir.summary import samples_frame
from cgbench.tables.floor import account_table, account_tables, measured_seconds
from cgbench.words import Scope, Stage
from tests.support.example import make_group, make_record

LIMITS = DeviceLimits(4.4567e12, 7.9e14)


def line(stage: str, what: str, milliseconds: float, bound_by: str = "bytes") -> FloorLine:
    return FloorLine(
        stage=Stage.parse(stage),
        what=what,
        count=3,
        num_bytes=2.5e6,
        flops=5e8,
        bound_by=bound_by,
        seconds=milliseconds / 1e3,
    )


ACCOUNT = Account(
    scope=Scope.ITERATION,
    spec_tokens=2,
    batch_size=2,
    context_len=260.25,
    lines=(
        line("verify", "self_attn.q_proj", 1.0),
        line("verify", "lm_head", 0.5, "operations"),
        line("draft_1", "attention", 0.25),
        line("draft_2", "attention", 0.125),
    ),
)

# Medians of the example: verify 3, accept 0.2, draft 1 1, draft 2 1, commit 0.1, iteration 5.
EXPECTED = """verify | self_attn.q_proj | 3 | 2.5 | 0.500 | bytes | 1.0000
verify | lm_head | 3 | 2.5 | 0.500 | operations | 0.5000
verify | 5.0 | 1.000 | 1.5000 | 3.0000 | 50%
accept | 0.2000
draft_1 | attention | 3 | 2.5 | 0.500 | bytes | 0.2500
draft_1 | 2.5 | 0.500 | 0.2500 | 1.0000 | 25%
draft_2 | attention | 3 | 2.5 | 0.500 | bytes | 0.1250
draft_2 | 2.5 | 0.500 | 0.1250 | 1.0000 | 12%
commit | 0.1000
iteration | 10.0 | 2.000 | 1.8750 | 5.0000 | 38%
"""


def printed(account: Account, width: int = 200) -> str:
    # As the command line prints it: what is too wide goes on in the next line.
    console = Console(width=1000, color_system=None)
    with console.capture() as capture:
        samples = samples_frame(make_group(2).samples)
        console.print(account_table(account, LIMITS, samples, width))
    return capture.get()


@pytest.mark.parametrize("width", [80, 90, 100, 200])
def test_every_line_and_every_stage_beside_its_measured_time(width: int) -> None:
    rows = [text.split() for text in printed(ACCOUNT, width).splitlines()]
    stages = ("verify", "accept", "draft_1", "draft_2", "commit", "iteration")
    got = [" | ".join(words) for words in rows if words[:1] and words[0] in stages]
    assert "\n".join(got) + "\n" == EXPECTED


def test_the_limits_and_the_mean_context_stand_below() -> None:
    assert (
        "read 4,456.7 GB/s, matrices 790,000.0 GFLOP/s, measured in this run, "
        "260.2 tokens of KV a request"
    ) in printed(ACCOUNT)


def test_a_stage_without_a_measured_time_has_no_share() -> None:
    """The instrumented pass may have run out of memory: the floor stands alone."""
    unmeasured = replace(ACCOUNT, batch_size=3)
    assert measured_seconds(unmeasured, samples_frame(make_group(2).samples)) == {}
    assert "%" not in printed(unmeasured)


def test_each_process_has_iterations_of_its_own() -> None:
    """Every process numbers its blocks and iterations from 0 on: alike, they are not one."""
    samples = samples_frame(make_group(2).samples)
    merged = pd.concat([samples.assign(process=number) for number in range(3)])
    assert measured_seconds(ACCOUNT, merged) == measured_seconds(ACCOUNT, samples)


def test_drafts_2_to_k_are_one_stage() -> None:
    together = [account_stage(Stage.draft(step), 3) for step in (1, 2, 3)]
    assert [*map(str, together)] == ["draft_1", "draft_2..3", "draft_2..3"]
    assert account_stage(Stage.draft(2), 2) == Stage.draft(2)
    assert account_stage(Stage.VERIFY, 3) == Stage.VERIFY


def test_accounts_are_kept_in_the_record_and_a_second_try_replaces_the_first() -> None:
    record = make_record()
    record.set_limits(LIMITS)
    other = replace(ACCOUNT, batch_size=4)
    record.keep_accounts(2, [replace(ACCOUNT, context_len=1.0)])
    record.keep_accounts(4, [other])
    record.keep_accounts(2, [ACCOUNT])
    again = RunRecord.from_json(record.to_json(), Path("run.json"))
    assert again.accounts == [other, ACCOUNT]
    assert json.loads(record.to_json())["floor"]["accounts"][1]["lines"][0]["what"] == (
        "self_attn.q_proj"
    )


def test_a_table_for_each_account() -> None:
    record = make_record()
    record.set_limits(LIMITS)
    record.keep_accounts(2, [ACCOUNT, replace(ACCOUNT, spec_tokens=0, lines=())])
    titles = [str(table.title) for table in account_tables(record, samples_frame([]), 80)]
    assert titles == ["floor: k 2, batch size 2, iteration", "floor: k 0, batch size 2, iteration"]


def test_two_steps_of_one_kind_add_up() -> None:
    step = line("draft_2..3", "lm_head", 0.5)
    both = step.plus(line("draft_2..3", "lm_head", 0.75, "operations"))
    assert (both.count, both.num_bytes, both.bound_by) == (6, 5e6, "operations")
    assert both.seconds == pytest.approx(1.25e-3)
