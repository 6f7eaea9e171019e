"""Ranges of ``cgbench run``: a sparse grid."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cgbench.cli import contexts
from cgbench.cli.values import parse_grid
from cgbench.errors import BadInputError, ExitCode, ProcessError
from cgbench.request.parts import SharingRequest
from cgbench.request.run_request import RunRequest
from tests.support.command import cgbench
from tests.support.runs import Made


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("3", (3,)),
        ("4,1,2", (1, 2, 4)),
        ("0-8", (0, 1, 2, 4, 8)),
        ("1-16", (1, 2, 4, 8, 16)),
        ("1-64", (1, 2, 4, 8, 16, 24, 32, 48, 64)),
        ("3-20", (3, 4, 8, 16, 20)),
        ("20-50", (20, 24, 32, 48, 50)),
        ("1-4,6", (1, 2, 4, 6)),
    ],
)
def test_a_range_is_its_ends_and_a_sparse_grid_between(text: str, found: tuple[int, ...]) -> None:
    assert parse_grid("--batch-sizes", text) == found


@pytest.mark.parametrize("text", ["8-1", "4-4", "1-", "-", "1-x", "1--4", ""])
def test_what_is_no_range_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(BadInputError, match="--batch-sizes"):
        parse_grid("--batch-sizes", text)


def test_run_refuses_a_falling_range_before_anything_is_loaded() -> None:
    cgbench("run", "--spec-tokens", "8-0").refused(2, "--spec-tokens 8-0", "must rise")


def write_apart(request: RunRequest, part: Path, name: str, progress: object) -> None:
    """A run of that context, without measuring one."""
    context = request.workload.context_len
    record = {"arguments": request.to_record()}
    Made(edit=lambda cell: replace(cell, context_len=context), record=record).write(part)


def test_several_contexts_are_a_run_each_that_tune_takes_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "run_apart", write_apart)
    out = tmp_path / "both"
    words = ("run", "--context-len", "1024,8192", "--output", out)
    done = cgbench(*words)
    assert done.code == 0, done.stderr
    parts = [out / "context-1024", out / "context-8192"]
    found = json.loads(cgbench("tune", *parts, "--json").stdout)
    assert [each["context_len"] for each in found["contexts"]] == [1024, 8192]
    cgbench(*words).refused(2, "--output", "--resume")


def test_contexts_that_are_finished_are_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def failing(request: RunRequest, part: Path, name: str, progress: object) -> None:
        measured.append(request.workload.context_len)
        if len(measured) == 2:
            raise ProcessError(f"{name}: gone", ExitCode.CANNOT)
        write_apart(request, part, name, progress)

    monkeypatch.setattr(contexts, "run_apart", failing)
    words = ("run", "--context-len", "1024,8192", "--output", tmp_path / "both")
    cgbench(*words).refused(3, "--context-len 8192: gone")
    assert cgbench(*words, "--resume").code == 0
    assert measured == [1024, 8192, 8192]


def test_several_contexts_do_not_go_with_several_gpus() -> None:
    asked = RunRequest(sharing=SharingRequest(tp=2))
    with pytest.raises(BadInputError, match="several contexts do not go with --tp"):
        contexts.measure_contexts(asked, [1, 2], Path("unwritten"), resume=False)


@pytest.mark.parametrize("text", ["a", "12,", "12-40", "-3"])
def test_a_context_that_is_none_is_refused_by_its_flag(text: str) -> None:
    cgbench("run", "--context-len", text).refused(2, "--context-len")
