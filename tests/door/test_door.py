"""``import cgbench``: functions that are quick to import, silent, typed, and raise our errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import cgbench
from cgbench.checks.findings import Answer
from cgbench.errors import BadInputError, ExitCode, PlanError, RunDirectoryError
from cgbench.gate.comparison import Rules
from cgbench.request import (
    AuditRequest,
    CaptureRequest,
    InspectRequest,
    ModelRequest,
    PeersRequest,
    PlanRequest,
    RunRequest,
    SharingRequest,
    TimingRequest,
    WorkloadRequest,
)
from cgbench.request.choices import Device
from cgbench.rundir.store import RunDirectory
from tests.support.progress import Kept

FUNCTIONS = [name for name in cgbench.__all__ if name != "__version__"]
FAST = WorkloadRequest(
    prompts="random",
    batch_sizes=[1, 2],
    max_new_tokens=8,
    context_len=12,  # type: ignore[arg-type]
)


def request(tiny: Path) -> RunRequest:
    return RunRequest(
        ModelRequest(ref=str(tiny)),
        CaptureRequest(spec_tokens=(1,)),
        FAST,
        TimingRequest(iterations=2, max_time_s=0.0),
        device=Device.CPU,
    )


@pytest.fixture(scope="module")
def progress() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory, progress: Kept) -> RunDirectory:
    return cgbench.run(request(tiny), tmp_path_factory.mktemp("door") / "run", progress=progress)


def test_a_run_is_returned_as_it_lies_on_disk(run: RunDirectory, tiny: Path) -> None:
    assert run.record.complete and RunRequest.from_record(run.record.arguments) == request(tiny)
    assert run.latency()["batch_size"].tolist() == [1, 1, 2, 2]
    # What a notebook shows where a call ends a cell.
    assert repr(run) == f"RunDirectory(path={run.path!r})"
    assert run.latency().equals(RunDirectory.open(run.path).latency())


def test_a_run_reports_to_its_progress_what_it_does(run: RunDirectory, progress: Kept) -> None:
    assert progress.named("bar") == ["batch size 1, 1 of 2", "batch size 2, 2 of 2"]
    assert progress.named("log") == ["measured batch size 1", "measured batch size 2"]
    steps = sum(int(call[2]) for call in progress.calls if call[0] == "bar")
    assert progress.calls.count(("advance",)) == steps
    assert "no graphs here" in str(progress.named("say")[0])


def test_calls_print_nothing(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    model, device = ModelRequest(ref=str(tiny)), Device.CPU
    audited = cgbench.audit(
        AuditRequest(
            model,
            CaptureRequest(spec_tokens=(1,), max_num_seqs=2),
            FAST,
            device=device,
            checks=("equality",),
        )
    )
    assert audited.verdict is Answer.HOLDS and json.loads(audited.to_json())["verdict"] == "holds"
    assert cgbench.inspect(InspectRequest(model, device)).is_usable
    asked = PeersRequest(
        model,
        workload=replace(FAST, batch_sizes=(1,)),
        device=device,
        peers=("eager",),
        seconds=0,
        rounds=3,
    )
    (row,) = cgbench.peers(asked).rows
    assert len(row.rounds) == 3
    assert capfd.readouterr() == ("", "")


def test_two_runs_are_compared_by_their_paths(run: RunDirectory) -> None:
    found = cgbench.compare(str(run.path), run.path)
    assert found.exit_code in (ExitCode.OK, ExitCode.INCONCLUSIVE) and found.lines


def test_a_plan_is_the_planners() -> None:
    assert cgbench.plan(PlanRequest(3, 4, "exact")).batch_sizes == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cgbench.plan(PlanRequest(3, 4, "none")), PlanError, "--policy none"),
        (lambda: cgbench.compare("gone", "gone"), RunDirectoryError, "gone/run.json: missing"),
        (lambda: Rules(min_effect=2.0), BadInputError, "--min-effect 2"),
        (lambda: Rules(confidence=0.0), BadInputError, "--confidence 0"),
        (
            lambda: cgbench.audit(AuditRequest(checks=("none",), device=Device.CPU)),
            BadInputError,
            "--checks none: unknown",
        ),
        (
            lambda: cgbench.run(
                RunRequest(sharing=SharingRequest(tp=2), timing=TimingRequest(processes=2)), "x"
            ),
            BadInputError,
            "--processes 2: not with --tp 2",
        ),
        (lambda: cgbench.run(RunRequest(), "tests"), RunDirectoryError, "--output tests"),
        (lambda: cgbench.run(RunRequest(), "gone", resume=True), RunDirectoryError, "gone"),
    ],
)
def test_what_is_wrong_is_one_of_our_errors(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_functions_are_named_where_a_reader_looks() -> None:
    assert {*FUNCTIONS} <= {*dir(cgbench)}
    with pytest.raises(AttributeError, match="no attribute 'bench'"):
        cgbench.bench  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_module_or_package_takes_the_name_of_a_function(name: str) -> None:
    """An import of it would replace the function."""
    folder = Path(cgbench.__file__).parent
    assert not (folder / name).exists() and not (folder / f"{name}.py").exists()


def test_every_function_is_imported_without_torch() -> None:
    code = (
        f"import sys, cgbench; assert not {{'rich', 'numpy'}} & sys.modules.keys()\n"
        f"from cgbench import {', '.join(FUNCTIONS)}\n"
        "import cgbench.request\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
