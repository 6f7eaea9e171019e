"""Faults that engines were reported to have, planted in a server one at a time: each is caught."""

import pytest

from cgbench.endpoint.edge_findings import EdgeVerdict, EndpointResult
from cgbench.errors import ExitCode
from tests.support.served import audit_again, edge_of, serving
from tests.support.served_faults import FAULTS

FAILED = (EdgeVerdict.WRONG, EdgeVerdict.FLAKY)

WHERE = {
    "StalePaddedRows": "2",
    "DrafterLostUnderGraphs": "4",
    "OutputBufferReused": "2",
    "PositionsOffAboveAnEdge": "2",
    "WrongBucket": "4",
    "NeighboursSlot": "2",
    "TruncatedList": "4",
}
"""The edge of buckets 1, 2 and 4 at which each fault shows."""

TIERED = (
    "vllm serve served --max-num-seqs 6 --speculative-config "
    '\'{"method": "mtp", "num_speculative_tokens": 3, '
    '"num_speculative_tokens_per_batch_size": [[1, 3, 3], [4, 6, 0]]}\''
)
TIERS = ((3, 3), (6, 0))


def test_every_fault_has_its_edge() -> None:
    assert {*WHERE, "DraftKvStaleAfterNone"} == {*FAULTS}


@pytest.mark.parametrize("name", WHERE)
def test_a_fault_is_caught(name: str) -> None:
    with serving(FAULTS[name]) as server:
        # Only at the edge where it shows. A sound server is audited at every edge of this plan.
        result = audit_again(server, edges=(int(WHERE[name]),), repeats=0)
    assert result.exit_code is ExitCode.ANSWER_IS_NO
    finding = edge_of(result, WHERE[name])
    assert finding.verdict in FAILED and finding.details
    if name == "DrafterLostUnderGraphs":
        # Text is right whatever is drafted: only the counters show it.
        assert not finding.wrong_attempts and "kept" in finding.details
    else:
        assert finding.wrong_attempts and finding.rows


@pytest.mark.slow
def test_draft_kv_that_is_stale_after_k_0_lowers_acceptance() -> None:
    """It takes many drafts to be sure: those before the tier are as good as ever."""

    def audited(name: str | None) -> EndpointResult:
        kind = [] if name is None else [FAULTS[name]]
        with serving(*kind, tiers=TIERS) as server:
            return audit_again(
                server,
                launch_line=TIERED,
                edges=(3,),
                num_prompts=12,
                max_new_tokens=80,
                repeats=2,
            )

    assert audited(None).exit_code is ExitCode.OK
    found = audited("DraftKvStaleAfterNone")
    assert found.exit_code is ExitCode.ANSWER_IS_NO
    assert "kept" in edge_of(found, "3").details
