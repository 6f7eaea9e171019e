"""Requests: what a record keeps of them, what it is read back as, and that commands fill them."""

import inspect
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cgbench.cli.audit import audit
from cgbench.cli.bench_flags import policy_name
from cgbench.cli.inspect import inspect as inspect_command
from cgbench.cli.run import run
from cgbench.cli.values import asked
from cgbench.errors import BadInputError
from cgbench.planning import CaptureUnit
from cgbench.request.choices import Device, Dtype, HeadPlacement, NormSide, Role
from cgbench.request.keys import ORDER, Recorded, values_of
from cgbench.request.parts import (
    CaptureRequest,
    HeadWiring,
    ModelRequest,
    SharingRequest,
    TimingRequest,
    WorkloadRequest,
)
from cgbench.request.run_request import AuditRequest, InspectRequest, RunRequest
from cgbench.words import Routing, Scope

RESULTS = Path(__file__).parents[2] / "results"

ALL_CHANGED = RunRequest(
    model=ModelRequest(
        ref="preset:mimo-7b",
        head="a/head",
        wiring=HeadWiring(hidden_in=NormSide.PRE, chain=NormSide.POST),
        dtype=Dtype.BFLOAT16,
        routing=Routing.BALANCED,
    ),
    capture=CaptureRequest(
        spec_tokens=(1, 3),
        scopes=(Scope.EAGER,),
        policy="explicit",
        capture_sizes=(2, 4),
        capture_unit=CaptureUnit.TOKENS,
        role=Role.DECODE,
    ),
    workload=WorkloadRequest(prompts="random", acceptance="length:2.5", ignore_eos=True),
    timing=TimingRequest(precision=0.01, max_time_s=2.5, processes=3),
    sharing=SharingRequest(tp=2, head=HeadPlacement.WHOLE),
    device=Device.CUDA,
    seed=7,
    save_tokens=True,
)

# What commands take that no record keeps: where results go, and how they are shown.
OF_RUN = {"output", "resume", "thin", "as_json", "explain", "wide", "debug"}
OF_AUDIT = {"repro", "as_json", "debug"}
OF_INSPECT = {"tensors", "as_json", "debug"}


@pytest.mark.parametrize("request_", [RunRequest(), ALL_CHANGED, AuditRequest(), InspectRequest()])
def test_a_request_is_read_back_from_its_record(request_: Recorded) -> None:
    record = json.loads(json.dumps(request_.to_record()))
    assert type(request_).from_record(record) == request_
    assert pickle.loads(pickle.dumps(request_)) == request_


def test_a_record_holds_plain_values_in_the_order_of_earlier_records() -> None:
    record = ALL_CHANGED.to_record()
    assert [*record][: len(ORDER) - 1] == [name for name in ORDER if name != "checks"]
    assert {type(value) for value in record.values()} <= {str, int, float, bool, list, type(None)}
    assert record["spec_tokens"] == [1, 3] and record["scopes"] == ["eager"]
    assert record["head_hidden_in"] == "pre" and record["head_chain"] == "post"
    assert (record["max_time"], record["tp"], record["tp_head"]) == (2.5, 2, "whole")


@pytest.mark.parametrize(
    "file", sorted(RESULTS.glob("**/run.json")), ids=lambda file: str(file.parent)[-40:]
)
def test_every_record_that_is_kept_is_read_and_written_as_it_was(file: Path) -> None:
    recorded = json.loads(file.read_text(encoding="utf-8"))["arguments"]
    written = RunRequest.from_record(recorded).to_record()
    assert [(name, value) for name, value in written.items() if name in recorded] == [
        *recorded.items()
    ]


def test_what_an_older_record_lacks_is_the_default() -> None:
    assert RunRequest.from_record({"model": "default"}) == RunRequest()


def test_flags_that_measure_nothing_are_dropped() -> None:
    record = {"output": "runs/one", "resume": True, "json": True, "thin": False, "debug": True}
    assert RunRequest.from_record(record) == RunRequest()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"seed": "7"}, "arguments.seed 7: must be a whole number"),
        ({"seed": True}, "arguments.seed true: must be a whole number"),
        ({"seed": None}, "arguments.seed null: must be a whole number"),
        ({"ignore_eos": 1}, "arguments.ignore_eos 1: must be true or false"),
        ({"model": ["default"]}, 'arguments.model ["default"]: must be text'),
        ({"spec_tokens": 3}, "arguments.spec_tokens 3: must be a list"),
        ({"spec_tokens": [1, 2.5]}, "arguments.spec_tokens 2.5: must be a whole number"),
        ({"scopes": ["graph"]}, "arguments.scopes graph: choose of eager,phase,iteration"),
        ({"precision": "1%"}, "arguments.precision 1%: must be a number"),
        ({"device": "tpu"}, "arguments.device tpu: choose of auto,cpu,cuda"),
        ({"device": []}, "arguments.device []: choose of auto,cpu,cuda"),
        ({"head_chain": "none"}, "arguments.head_chain none: choose of pre,post"),
        ({"routing": 1}, "arguments.routing 1: choose of model,balanced"),
        ({"of_later": 1}, "arguments.of_later: is unknown. A newer cgbench may read it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_another_type_is_refused_in_one_line(record: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputError, match=f"^{re.escape(words)}$"):
        RunRequest.from_record(record)


def test_one_gpu_shares_nothing() -> None:
    assert SharingRequest(tp=1, head=HeadPlacement.WHOLE) == SharingRequest()
    assert SharingRequest(tp=2).head is HeadPlacement.DIVIDED


def test_an_audit_leaves_nothing_to_chance() -> None:
    workload = WorkloadRequest(acceptance="sampled", ignore_eos=True, max_new_tokens=4)
    found = AuditRequest(capture=CaptureRequest(role=Role.MIXED), workload=workload)
    assert found.capture.role is Role.DECODE
    assert found.workload == replace(workload, acceptance="greedy", ignore_eos=False)
    assert found.to_record().keys().isdisjoint({"role", "acceptance", "ignore_eos", "batch_sizes"})


def defaults(command: Callable[..., None]) -> dict[str, object]:
    return {name: each.default for name, each in inspect.signature(command).parameters.items()}


@pytest.mark.parametrize(
    ("command", "kind", "others"),
    [
        (run, RunRequest, OF_RUN),
        (audit, AuditRequest, OF_AUDIT),
        (inspect_command, InspectRequest, OF_INSPECT | {"routing"}),
    ],
    ids=["run", "audit", "inspect"],
)
def test_a_commands_parameters_are_the_keys_of_its_request(
    command: Callable[..., None], kind: type[Recorded], others: set[str]
) -> None:
    """A parameter under another name would be left out of the request in silence."""
    assert defaults(command).keys() - others == kind().to_record().keys() - others


def test_without_flags_a_command_asks_for_what_the_request_does_by_itself() -> None:
    given = {"policy": policy_name(None, None)}
    for command, kind in (
        (run, RunRequest),
        (audit, AuditRequest),
        (inspect_command, InspectRequest),
    ):
        found = defaults(command) | given
        if command is run:
            # In text, because several contexts are a run each.
            found |= {"context_len": int(found["context_len"])}
        assert asked(kind, found) == kind()


def test_flags_in_text_are_read_by_the_type_of_their_value() -> None:
    given = {
        "spec_tokens": "3,1",
        "scopes": "iteration,eager",
        "capture_sizes": None,
        "precision": "2%",
        "head_hidden_in": NormSide.PRE,
        "as_json": True,
    }
    found = asked(RunRequest, given)
    assert found.capture == CaptureRequest((1, 3), (Scope.EAGER, Scope.ITERATION))
    assert found.timing.precision == 0.02 and found.model.wiring.hidden_in is NormSide.PRE


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_sizes": "1,x"}, "--batch-sizes 1,x: must be whole numbers"),
        ({"capture_sizes": ""}, "--capture-sizes : must be whole numbers"),
        ({"precision": "0"}, "--precision 0: must be a share such as 0.5% or 0.005"),
        ({"scopes": "graph"}, "--scopes graph: unknown"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_text_that_states_no_value_names_its_flag(given: dict[str, object], words: str) -> None:
    with pytest.raises(BadInputError, match=f"^{re.escape(words)}"):
        asked(RunRequest, given)


def test_every_value_has_a_key_of_its_own() -> None:
    keys = [value.key for value in values_of(RunRequest)]
    assert len(keys) == len(set(keys)) and {*ORDER} - {"checks"} <= {*keys}


@dataclass(frozen=True, slots=True)
class Part:
    sizes: tuple[int, ...] = (1,)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trial(Recorded):
    part: Part = field(default_factory=Part)
    model: str = "default"


def test_a_new_field_is_recorded_and_filled_from_its_flag_by_itself() -> None:
    found = asked(Trial, {"model": "one", "sizes": "3,2"})
    assert found == Trial(Part((2, 3)), "one")
    assert list(found.to_record().items()) == [("model", "one"), ("seed", 0), ("sizes", [2, 3])]
    assert Trial.from_record({"sizes": [2, 3], "model": "one"}) == found
    with pytest.raises(BadInputError, match=r"^--sizes x: must be whole numbers"):
        asked(Trial, {"sizes": "x"})
