"""vLLM's decode graphs by phase, against a table that agrees with the engine's own code."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.planning import MAX_SPEC_TOKENS, PlanRequest, plan
from cgbench.planning.policies.vllm import decode_graphs

TABLE = json.loads(Path(__file__).with_name("vllm_phases.json").read_text())
ROWS = [row for row in TABLE if row["spec_tokens"] <= MAX_SPEC_TOKENS]
OF_ITS_OWN_LIST = [row for row in ROWS if not {"listed", "cap", "interactivity"} & row.keys()]


def name(row: dict[str, Any]) -> str:
    return f"{row['max_num_seqs']}-k{row['spec_tokens']}-{len(row['tokens'])}"


def asked(row: dict[str, Any]) -> PlanRequest:
    return PlanRequest(
        row["spec_tokens"],
        row["max_num_seqs"],
        "vllm-0.33",
        max_num_batched_tokens=row.get("budget", 8192),
        blackwell=row.get("ceiling") == 1024,
    )


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_graphs_of_a_list(row: dict[str, Any]) -> None:
    found = decode_graphs(asked(row), row.get("listed", row["tokens"]))
    assert list(found.verify) == row["verify"]
    assert list(found.later_drafts) == row.get("draft_rest", [])


@pytest.mark.parametrize("row", OF_ITS_OWN_LIST, ids=name)
def test_the_policy_verifies_in_the_engines_graphs(row: dict[str, Any]) -> None:
    assert list(plan(asked(row)).batch_sizes) == row["verify"]
