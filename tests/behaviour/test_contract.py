"""The contract around every command: help that costs nothing, exit codes, one line an error."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

import cgbench as package
from cgbench.cli.app import main
from tests.support.command import cgbench, python

HEAVY = ("torch", "transformers", "pandas", "pyarrow", "safetensors")

WHAT_HELP_LOADS = """
import sys
from typer.testing import CliRunner
from cgbench.cli.app import app
for words in sys.argv[2:]:
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0 and done.output.strip(), done.output
    found = {*sys.argv[1].split()} & sys.modules.keys()
    assert not found, f"{words} loads {found}"
"""


def test_help_loads_nothing_heavy() -> None:
    """All of it in one process, which ends at the first that loads something."""
    helps = ["--help", "run --help", "audit --help", "env --help", "compare --help", "--version"]
    done = python("-c", WHAT_HELP_LOADS, " ".join(HEAVY), *helps)
    assert done.code == 0, done.stderr


def test_version() -> None:
    done = python("-m", "cgbench", "--version")
    assert (done.code, done.stdout) == (0, f"cgbench {package.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("run --bogus", "--bogus"),
        ("run --dtype int8", "--dtype"),
        ("run --max-new-tokens x", "--max-new-tokens"),
        ("run --spec-tokens", "--spec-tokens"),
        ("run model surplus", "surplus"),
        ("bogus", "bogus"),
    ],
)
def test_usage_errors_are_one_line(arguments: str, named: str) -> None:
    done = cgbench(*arguments.split())
    done.refused(2, named, "--help")
    assert done.stderr == f"{done.error}\n" and "\x1b" not in done.stderr


def test_no_command_shows_the_commands() -> None:
    done = cgbench()
    assert (done.code, done.stderr) == (2, "") and "compare" in done.stdout


def test_a_refusal_is_one_line_on_stderr_and_exit_code_2() -> None:
    done = python("-m", "cgbench", "run", "--spec-tokens", "x")
    line = "error: --spec-tokens x: must be whole numbers separated by commas, such as 1,2,4\n"
    assert (done.code, done.stdout, done.stderr) == (2, "", line)


def test_a_long_error_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgbench.door.run.run", failing(RuntimeError("word " * 100)))
    assert len(cgbench("run").error) > 500


def failing(error: Exception) -> object:
    def execute(*_: object, **__: object) -> None:
        raise error

    return execute


FAULTS = [
    AssertionError(),
    KeyError("compile"),
    IndexError("list index out of range"),
    ZeroDivisionError("by [0]\nand more"),
    AttributeError("no such thing"),
    TypeError("not an int"),
    ValueError("math domain error"),
    RecursionError("too deep"),
    NotImplementedError("later"),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_a_mistake_of_ours_is_called_one_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("cgbench.door.run.run", failing(error))
    done = cgbench("run")
    first_line = str(error).partition("\n")[0] or "(no message)"
    words = f"error: a fault of cgbench: {type(error).__name__}: {first_line}"
    done.refused(70, words, "report", "--debug")
    assert done.stderr == f"{done.error}\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError(28, "No space left on device"),
        MemoryError(),
        ModuleNotFoundError("No module named 'gguf'"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_machine_raises_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("cgbench.door.run.run", failing(error))
    done = cgbench("run")
    done.refused(3, f"error: {type(error).__name__}: ", "--debug")
    assert "fault" not in done.error


@pytest.mark.parametrize(
    ("how", "size"), [("table", "8"), ("table", "4096"), ("csv", "4096"), ("json", "8")]
)
def test_a_reader_that_goes_early_is_no_answer(how: str, size: str) -> None:
    """Exit code 1 would say that something regressed, or is wrong."""
    words = f"plan --policy exact --max-num-seqs {size} --format {how}"
    assert ended_before_a_reader(f"{words} | true") == ("141\n", "")


def test_a_reader_of_the_error_that_goes_early() -> None:
    assert ended_before_a_reader("plan --bogus 2>&1 | true") == ("141\n", "")


def ended_before_a_reader(pipeline: str) -> tuple[str, str]:
    """The command's exit code, and what it wrote all the same. ``true`` ends before it writes."""
    script = f"{sys.executable} -m cgbench {pipeline}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    return done.stdout, done.stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    done = python("-m", "cgbench", "run", "--spec-tokens", "x", "--debug")
    assert "Traceback (most recent call last)" in done.stderr
    assert "BadInputError: --spec-tokens x" in done.stderr
    assert done.code == 2


def test_a_caller_can_give_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the process, here pytest's own, are left alone then."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "--spec-tokens", "x", "--debug"])
    assert ended.value.code == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["run", "plan", "audit", "compare", "inspect", "peers", "prompts", "env"]
)
def test_every_command_takes_debug(command: str) -> None:
    assert "--debug" in cgbench(command, "--help").stdout


def test_arguments_are_called_what_the_documents_call_them() -> None:
    cgbench("compare").refused(2, "BASE")


def test_env_shows_the_machine_as_json_and_as_text() -> None:
    answer = cgbench("env", "--json")
    found = json.loads(answer.stdout)
    assert found["cgbench"] == package.__version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert found["num_gpus"] == torch.cuda.device_count()
    lines = cgbench("env").stdout.splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines)
    assert list(shown) == list(found)
    assert shown == {name: "-" if value is None else str(value) for name, value in found.items()}
    assert len({line.index(value) for line, value in zip(lines, shown.values(), strict=True)}) == 1
