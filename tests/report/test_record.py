"""``run.json``: the round trip, and every way that it can be wrong."""

import json
from pathlib import Path

import pytest

from cgbench.errors import RunDirectoryError
from cgbench.report.schema import RunRecord, Scope
from tests.report.example import make_record

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
        ('{"schema_version": 2}', "schema_version 2; this cgbench reads 1"),
        ("{}", "schema_version None"),
        ('{"schema_version": 1}', "field cgbench_version is missing or is not a str"),
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
