"""A comparison's request: what it decides itself, and what it refuses."""

from dataclasses import replace

import pytest

from cgbench.errors import BadInputError
from cgbench.request.choices import Role
from cgbench.request.parts import CaptureRequest, ModelRequest, WorkloadRequest
from cgbench.request.peers_request import PeersRequest
from cgbench.words import Routing, Scope


def test_this_tool_captures_what_is_decoded_and_routes_as_others_do() -> None:
    asked = PeersRequest(
        model=ModelRequest("preset:mimo-7b", routing=Routing.BALANCED),
        capture=CaptureRequest(spec_tokens=(2,), scopes=(Scope.EAGER,), attention="sdpa"),
        workload=WorkloadRequest(batch_sizes=(4,), context_len=12),
        seed=7,
    )
    run = asked.run
    assert (run.model.ref, run.model.routing) == ("preset:mimo-7b", Routing.MODEL)
    assert (run.capture.spec_tokens, run.capture.attention) == ((2,), "sdpa")
    assert run.capture.scopes == tuple(Scope) and run.capture.role is Role.DECODE
    assert (run.capture.policy, run.capture.capture_sizes) == ("explicit", (4,))
    assert (run.workload.context_len, run.seed) == (12, 7)


def test_a_request_is_recorded_and_read_back() -> None:
    asked = PeersRequest(peers=("iteration", "dynamic"), seconds=5.0, rounds=3)
    assert PeersRequest.from_record(asked.to_record()) == asked


@pytest.mark.parametrize(
    ("values", "words"),
    [((1, 3), "--spec-tokens 1,3: must be one number"), ((), "--spec-tokens: is empty")],
)
def test_one_k_is_compared(values: tuple[int, ...], words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        PeersRequest(capture=CaptureRequest(spec_tokens=values))


def test_one_batch_size_is_compared() -> None:
    workload = replace(PeersRequest().workload, batch_sizes=(1, 8))
    with pytest.raises(BadInputError, match="--batch-size 1,8: must be one number"):
        PeersRequest(workload=workload)
