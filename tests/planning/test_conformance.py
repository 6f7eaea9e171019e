"""Engines' capture sizes, row by row against a table computed from each version's own rule."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import PlanError
from cgbench.planning import POLICIES, CapturePlan, PlanRequest, plan

TABLE = json.loads(Path(__file__).with_name("capture_sizes.json").read_text())
ROWS = [row for row in TABLE if row["policy"] in POLICIES]
PLANNED = [row for row in ROWS if "error" not in row]
REFUSED = [row for row in ROWS if "error" in row]


def name(row: dict[str, Any]) -> str:
    return f"{row['policy']}-{row['max_num_seqs']}-k{row['spec_tokens']}"


def planned(row: dict[str, Any]) -> CapturePlan:
    return plan(PlanRequest(row["spec_tokens"], row["max_num_seqs"], row["policy"]))


@pytest.mark.parametrize("row", PLANNED, ids=name)
def test_planned(row: dict[str, Any]) -> None:
    found = planned(row)
    assert list(found.capture_tokens) == row["tokens"]
    assert list(found.batch_sizes) == row["batch_sizes"]
    assert list(found.indivisible) == row["indivisible"]
    assert found.eager_batch_sizes == row["eager_batch_sizes"]
    assert found.mean_padding == pytest.approx(row["mean_padding"], abs=1e-6)


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_refused(row: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=row["error"]):
        planned(row)
