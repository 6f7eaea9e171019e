"""``--quant`` on the command line: in a run's rows and record, in ``inspect``, and refused."""

import json
from pathlib import Path

import pytest

from cgbench.models.heads.families import DEEPSEEK, MIMO
from tests.support.command import FAST, cgbench
from tests.support.fp8 import make_fp8_checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_fp8_checkpoint(tmp_path_factory.mktemp("fp8"), "mimo", MIMO, seed=3)


@pytest.mark.parametrize(
    ("flags", "mode", "kept"),
    [(("--quant", "w8a8"), "w8a8", "same"), (("--kv-dtype", "fp8"), "w8a16", "fp8")],
    ids=("w8a8", "fp8 keys"),
)
def test_a_run_states_it_in_its_rows_and_its_record(
    folders: tuple[Path, Path], tmp_path: Path, flags: tuple[str, ...], mode: str, kept: str
) -> None:
    """How keys and values are kept too."""
    run = tmp_path / "run"
    done = cgbench("run", folders[0], *FAST, "--prompts", "random", "--output", run, *flags)
    assert done.code == 0, done.stderr
    record = json.loads((run / "run.json").read_text())
    arguments = record["arguments"]
    is_fp8 = kept == "fp8"
    assert (arguments["quant"], arguments["kv_dtype"]) == (
        ("auto", "fp8") if is_fp8 else (mode, "auto")
    )
    stated = record["model"].get("kv_format") == "FP8 (e4m3) with a scale for each head and token"
    assert stated == is_fp8
    # A CPU multiplies the values, in float32.
    assert "fp8_flops_per_s" not in record["floor"]["limits"]
    header, *rows = (run / "latency.csv").read_text().splitlines()
    for name, value in (("quant", mode), ("kv_dtype", kept)):
        column = header.split(",").index(name)
        assert rows and {row.split(",")[column] for row in rows} == {value}


@pytest.mark.parametrize(
    ("command", "mode"),
    [("run", "w8a8"), ("run", "w8a16"), ("audit", "w8a8"), ("inspect", "w8a16")],
)
def test_plain_weights_are_refused_in_one_line(
    folders: tuple[Path, Path], tmp_path: Path, command: str, mode: str
) -> None:
    where = ("--output", tmp_path / "run") if command == "run" else ()
    done = cgbench(command, folders[1], *where, "--quant", mode)
    done.refused(2, f"--quant {mode}", "has no FP8 weights", "Drop --quant")
    assert not (tmp_path / "run").exists()


def test_inspect_states_the_mode(tmp_path: Path) -> None:
    folder, _ = make_fp8_checkpoint(tmp_path, "deepseek_v3", DEEPSEEK)
    for flags, words in (
        ((), "run as w8a16 (activations are not quantised)"),
        (("--quant", "w8a8"), "run as w8a8 (activations are quantised by token)"),
    ):
        done = cgbench("inspect", folder, *flags)
        assert done.code == 0 and words in done.stdout.replace("\n", " ")
