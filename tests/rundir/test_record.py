"""``run.json``: the round trip, and every way that it can be wrong."""

import json
from pathlib import Path

import pytest

from cgbench.errors import RunDirectoryError
from cgbench.floor.rates import DeviceLimits
from cgbench.rundir.collective_share import CollectiveShare
from cgbench.rundir.record import ADDED_FIELDS, RunRecord
from cgbench.words import Scope
from tests.support.example import make_record

FILE = Path("somewhere/run.json")


def test_round_trip() -> None:
    record = make_record()
    assert RunRecord.from_json(record.to_json(), FILE) == record


def test_scopes_are_written_as_words() -> None:
    record = make_record(scopes=[Scope.EAGER, Scope.PHASE])
    assert json.loads(record.to_json())["arguments"]["scopes"] == ["eager", "phase"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not JSON"),
        ('{"schema_version": 1', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        (
            '{"schema_version": 4}',
            "schema_version 4. This cgbench reads 1, 2, 3. A newer cgbench may$",
        ),
        ('{"schema_version": 0}', "schema_version 0. This cgbench reads 1, 2, 3$"),
        ('{"schema_version": "2"}', "schema_version 2. This cgbench reads 1, 2, 3$"),
        ('{"schema_version": true}', "schema_version True. This cgbench reads 1, 2, 3$"),
        ("{}", "schema_version None. This cgbench reads 1, 2, 3$"),
        ('{"schema_version": 1}', "field cgbench_version is missing or is not a str"),
        ('{"schema_version": 2}', "field cgbench_version is missing or is not a str"),
    ],
)
def test_what_is_not_a_record(text: str, complaint: str) -> None:
    with pytest.raises(RunDirectoryError, match=rf"somewhere/run\.json: {complaint}"):
        RunRecord.from_json(text, FILE)


@pytest.mark.parametrize(
    ("field", "wrong", "kind"),
    [
        ("created_utc", 5, "str"),
        ("complete", "yes", "bool"),
        ("environment", [], "dict"),
        ("arguments", None, "dict"),
        ("model", "tiny", "dict"),
        ("plans", {}, "list"),
        ("warnings", "none", "list"),
        ("thin", None, "bool"),
        ("resumed", "never", "list"),
    ],
)
def test_malformed_field_is_named(field: str, wrong: object, kind: str) -> None:
    raw = json.loads(make_record().to_json())
    complaint = rf"run\.json: field {field} is missing or is not a {kind}"
    with pytest.raises(RunDirectoryError, match=complaint):
        RunRecord.from_json(json.dumps(raw | {field: wrong}), FILE)
    del raw[field]
    with pytest.raises(RunDirectoryError, match=complaint):
        RunRecord.from_json(json.dumps(raw), FILE)


def test_a_run_from_before_floors_were_kept_can_be_read() -> None:
    raw = json.loads(make_record().to_json())
    del raw["floor"]
    assert RunRecord.from_json(json.dumps(raw), FILE).floor == {}
    with pytest.raises(RunDirectoryError, match=r"field floor is missing or is not a dict"):
        RunRecord.from_json(json.dumps(raw | {"floor": 1}), FILE)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": {}}, "field model.label is missing or is not a str"),
        ({"plans": ["scaled"]}, r"field plans\[0\] is missing or is not a dict"),
        ({"plans": [{"spec_tokens": 1}]}, r"field plans\[0\].batch_sizes is missing or is not a"),
        (
            {"plans": [{"batch_sizes": [1]}]},
            r"field plans\[0\].spec_tokens is missing or is not an",
        ),
        ({"warnings": [5]}, "field warnings is missing or is not a list of str"),
        ({"thick": True}, "field thick is unknown. A newer cgbench may read it"),
    ],
)
def test_what_is_wrong_inside_a_field_is_named(change: dict[str, object], complaint: str) -> None:
    raw = json.loads(make_record().to_json())
    with pytest.raises(RunDirectoryError, match=rf"run\.json: {complaint}"):
        RunRecord.from_json(json.dumps(raw | change), FILE)


@pytest.mark.parametrize("field", sorted(ADDED_FIELDS))
def test_a_record_from_before_a_field_was_added(field: str) -> None:
    raw = json.loads(make_record().to_json())
    del raw[field]
    assert getattr(RunRecord.from_json(json.dumps(raw), FILE), field) == {}


def test_limits_are_kept_and_read_back() -> None:
    record, limits = make_record(), DeviceLimits(4e12, 8e14, 0.02, 50_000_000)
    assert record.limits is None
    record.set_limits(limits)
    assert RunRecord.from_json(record.to_json(), FILE).limits == limits


def test_the_rate_of_fp8_products_is_kept_if_it_was_measured() -> None:
    record, limits = make_record(), DeviceLimits(4e12, 8e14, fp8_flops_per_s=1.6e15)
    record.set_limits(limits)
    assert RunRecord.from_json(record.to_json(), FILE).limits == limits
    record.set_limits(DeviceLimits(4e12, 8e14))
    assert "fp8_flops_per_s" not in record.floor["limits"]


def test_limits_of_an_older_run_have_no_spread_and_no_cache() -> None:
    record = make_record()
    record.floor = {"limits": {"read_bytes_per_s": 4e12, "flops_per_s": 8e14}}
    assert record.limits == DeviceLimits(4e12, 8e14, 0.0, None)


def test_a_warning_is_kept_once() -> None:
    record = make_record()
    record.warnings = ["first"]
    record.add_warnings(["second", "first"])
    assert record.warnings == ["first", "second"]


def test_what_steps_took_is_added_to_what_is_there() -> None:
    record = make_record()
    record.add_capture({"compile_s": 2.0})
    record.add_capture({"role": "mixed", "seconds": 0.5})
    record.set_seconds(run=60.0, audit=1.0)
    assert record.capture == {"compile_s": 2.0, "role": "mixed", "seconds": 0.5}
    assert record.seconds == {"run": 60.0, "audit": 1.0}


def test_shares_of_collectives_are_kept_beside_how_the_model_is_shared() -> None:
    share = CollectiveShare("phase", 1, 2, 0.25, 1.0)
    record = make_record()
    record.add_collectives([])  # one rank has nowhere to keep any
    record.model["tensor_parallel"] = {"collectives": []}
    record.add_collectives([share])
    assert record.model["tensor_parallel"]["collectives"] == [share.facts]
    assert share.facts["frac"] == 0.25 and [*share.facts][:3] == [
        "scope",
        "spec_tokens",
        "batch_size",
    ]
