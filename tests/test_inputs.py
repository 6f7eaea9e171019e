"""What every input shares: one policy for JSON, and a look at files before they are opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError, ModelError, RunDirectoryError
from cgbench.inputs import parse_json, parse_own_json
from cgbench.models.checkpoint import read_config
from cgbench.planning.concurrency import Concurrency
from cgbench.rundir.record import RunRecord
from cgbench.workload.prompt_files import read_prompts

TWICE = '{"4": 1, "4": 2}'


def of_run(file: Path) -> object:
    return RunRecord.from_json(file.read_text(), file)


def of_model(file: Path) -> object:
    file.rename(file.with_name("config.json"))
    return read_config(str(file.parent))


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (of_run, RunDirectoryError),
        (of_model, ModelError),
        (read_prompts, BadInputError),
        (Concurrency.read, BadInputError),
    ],
    ids=["run.json", "config.json", "prompts", "concurrency"],
)
def test_a_key_that_is_there_twice_is_refused_in_every_file(
    read: Callable[[Path], Any], error: type[BadInputError], tmp_path: Path
) -> None:
    file = tmp_path / "file.jsonl"
    file.write_text(TWICE)
    with pytest.raises(error, match="key '4' is there twice"):
        read(file)


def test_other_programs_may_write_what_ours_do_not() -> None:
    text = '{"a": [Infinity, "\\u001b"]}'
    assert parse_json("--flag", text) == {"a": [float("inf"), "\x1b"]}
    with pytest.raises(ValueError, match="Infinity is no number"):
        parse_own_json(text)


def test_what_is_written_is_read() -> None:
    value = {"a": [1, -2.5, None, True, "text"], "b": {}}
    assert parse_own_json(json.dumps(value)) == parse_json("", json.dumps(value)) == value
