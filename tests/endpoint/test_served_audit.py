"""Audits of a sound server raise no alarm, whatever it can answer."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cgbench.endpoint.acceptance_across import Acceptance
from cgbench.endpoint.edge_findings import EdgeVerdict, EndpointResult
from cgbench.errors import BadInputError, CannotError, EndpointError, ExitCode
from tests.endpoint.test_served_faults import FAILED, TIERED, TIERS
from tests.support.completions_server import KNOWN
from tests.support.served import audit_again, audit_of, edge_of, keeping_dialect, serving
from tests.support.served_faults import FAULTS
from tests.support.serving import ServingEngine

PLAIN = {"model", "prompt", "max_tokens", "temperature", "stream"}
CLEAN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "graphs up to 4, then eager": ({}, {}),
    "another policy, without drafts": (
        {"buckets": (2, 3, 6), "tiers": ((6, 0),)},
        {"edges": (3, 6)},
    ),
    # Few drafts of some prompts' ends are no measure of acceptance: the test of a head's stale KV
    # has as many as it takes, from a sound server too, and audits where k changes.
    "k by batch size": (
        {"tiers": TIERS},
        {"launch_line": TIERED, "checks": ("tokens",), "edges": (6,)},
    ),
    "text alone": ({"fields": PLAIN}, {"edges": (2, 6)}),
    "tokens as text, no ids, no metrics": (
        {
            "fields": KNOWN - {"return_token_ids", "return_tokens_as_token_ids"},
            "has_metrics": False,
        },
        {"edges": (4,)},
    ),
}


@cache
def sound_audit() -> tuple[EndpointResult, int]:
    """At every edge of the plan, and the most requests that waited while the batch was full."""
    with serving() as server:
        return audit_again(server), server.engine.most_waiting


@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_server_raises_no_alarm(name: str) -> None:
    server_fields, request_fields = CLEAN[name]
    with serving(**server_fields) as server:
        if not server_fields:
            result, _ = sound_audit()
        elif server.has_metrics:
            result = audit_again(server, num_prompts=2, **request_fields)
        else:
            # What is asked twice is decoded twice, and the fields are found out again.
            result = audit_of(server, num_prompts=2, **request_fields)
            assert result.requests <= len(server.seen)
    assert result.exit_code is ExitCode.OK, result.to_json()
    assert {finding.verdict for finding in result.findings} == {EdgeVerdict.HOLDS}
    assert all(finding.most_at_once >= finding.peak for finding in result.findings)
    if name != "text alone":
        assert 0 < result.noise.token < 1e-3 and result.noise.positions > 50
    has_drafts = "no metrics" not in name and server.engine.tiers[0][1] > 0
    if has_drafts and len(server.engine.tiers) == 1:
        finding = edge_of(result, "6")
        assert finding.acceptance is not None
        assert finding.acceptance.answer is Acceptance.SAME


def test_a_server_with_text_alone_is_unclear_where_it_differs() -> None:
    with serving(FAULTS["NeighboursSlot"], fields=PLAIN) as server:
        at_two: dict[str, Any] = {"edges": (2,), "checks": ("tokens",), "num_prompts": 2}
        unclear = audit_again(server, **at_two)
        exact = audit_again(server, exact=True, **at_two)
    assert edge_of(unclear, "2").verdict is EdgeVerdict.UNCLEAR
    assert unclear.exit_code is ExitCode.INCONCLUSIVE
    assert any("no logprobs" in note for note in unclear.notes)
    assert edge_of(exact, "2").verdict in FAILED


def test_another_server_shows_what_is_wrong_alone_too() -> None:
    """Positions are off in every bucket: the server agrees with itself, but not with another."""
    few: dict[str, Any] = {"num_prompts": 2, "max_new_tokens": 12}
    faulty = serving(FAULTS["PositionsOffAboveAnEdge"], buckets=(3, 6))
    with faulty as server, serving() as sound, keeping_dialect(sound):
        result = audit_of(server, against=sound.url, edges=(3,), checks=("tokens",), **few)
    assert edge_of(result, "alone").verdict is EdgeVerdict.WRONG
    assert result.exit_code is ExitCode.ANSWER_IS_NO


def test_bounds_are_kept() -> None:
    with serving() as server:
        result = audit_again(server, max_requests=20)
        assert result.requests <= 20
        with pytest.raises(CannotError, match="--max-requests leaves 11, and this takes 12"):
            audit_again(server, max_requests=11)
    verdicts = {finding.edge: finding.verdict for finding in result.findings}
    # The cliff comes first: 12 alone, then 5 of the 8 that are left.
    assert verdicts["4"] is EdgeVerdict.HOLDS and verdicts["6"] is EdgeVerdict.NOT_RUN
    assert "--max-requests leaves 3" in edge_of(result, "6").reason
    assert result.exit_code is ExitCode.INCONCLUSIVE


def test_no_more_than_the_largest_batch_is_in_flight() -> None:
    result, most_waiting = sound_audit()
    assert edge_of(result, "6").most_at_once == 6 and most_waiting == 0


def test_a_server_that_fails_at_an_edge_is_wrong_there(tmp_path: Path) -> None:
    class Crashes(ServingEngine):
        def results(self, state: Any, count: int, bucket: int | None) -> list[list[int]]:
            if count > 4:
                for row in self.rows:
                    row.out.put(None)
                self.rows = []
            return super().results(state, len(self.rows), bucket)

    with serving(Crashes) as server:
        result = audit_again(server, edges=(4,), repeats=0, timeout=2)
    assert edge_of(result, "4").verdict is EdgeVerdict.WRONG
    assert result.exit_code is ExitCode.ANSWER_IS_NO


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"edges": (3,)}, "--edges 3: is no edge of the plan. Choose of 1,2,4,6"),
    ({"max_num_seqs": None}, "--max-num-seqs: give"),
    ({"engine": None, "capture_sizes": ()}, "--engine: give the engine's policy"),
    ({"checks": ("drafts",)}, "--checks drafts: unknown"),
    ({"num_prompts": 1}, "--num-prompts 1: must be at least 2"),
    ({"launch_line": TIERED, "spec_tokens": 3}, "--spec-tokens: not beside --from"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_a_bad_request_is_refused_before_a_server_is_asked(
    fields: dict[str, Any], message: str, server_without_model: Callable[..., Any]
) -> None:
    with pytest.raises(BadInputError, match=message):
        server_without_model(**fields)


def test_a_server_that_is_not_there(server_without_model: Callable[..., Any]) -> None:
    with pytest.raises(EndpointError, match=r"--endpoint http://127.0.0.1:1: .*refused"):
        server_without_model()


@pytest.fixture
def server_without_model() -> Callable[..., Any]:
    from cgbench import audit_endpoint
    from cgbench.endpoint.endpoint_request import EndpointRequest

    def audited(**fields: Any) -> Any:
        plan: dict[str, Any] = {
            "engine": "explicit",
            "capture_sizes": (1, 2, 4),
            "max_num_seqs": 6,
            "spec_tokens": 3,
        }
        plan = {} if "launch_line" in fields else plan
        return audit_endpoint(EndpointRequest(endpoint="http://127.0.0.1:1", **(plan | fields)))

    return audited
