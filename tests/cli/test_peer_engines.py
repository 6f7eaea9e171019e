"""``cgbench peers --engine``, end to end: engines in processes, run directories, failures.

vLLM is the small one of ``tests/support/engine_site``. This tool and transformers are the real
ones. Their processes are forked from a server that has imported torch, but for the one in another
environment.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cgbench.engines import engine_process
from cgbench.rundir.store import RunDirectory
from tests.support.command import Done, cgbench
from tests.support.engines import SITE
from tests.support.forked_engines import forked_engines

FAST = (
    *("--device", "cpu", "--context-len", 12, "--prompts", "random"),
    *("--steps", 2, "--rounds", 2, "--seconds", 5, "--start-timeout", 120),
)
VLLM = ("--engine", "vllm", "--engine-site", f"vllm={SITE}")


@pytest.fixture(scope="module", autouse=True)
def forked() -> Iterator[None]:
    with forked_engines():
        yield


def peers(tiny: Path, output: Path, *more: object) -> Done:
    return cgbench("peers", tiny, *FAST, "--output", output, *more)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    from tests.support.tiny import make_checkpoint

    root = tmp_path_factory.mktemp("engines")
    folder = make_checkpoint(root / "tiny", "mimo")
    engines = ("--engine", "cgbench", *VLLM, "--engine", "transformers")
    done = peers(
        folder, root / "out", *engines, "--spec-tokens", "0,3", "--batch-sizes", "1,2", "--json"
    )
    return done, root / "out"


def test_every_engine_is_measured_and_transformers_has_no_drafts(
    measured: tuple[Done, Path],
) -> None:
    done, output = measured
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {(row["engine"], row["spec_tokens"], row["batch_size"]): row for row in found["rows"]}
    sizes, pairs = (1, 2), (("cgbench", 0), ("cgbench", 3), ("vllm", 0), ("vllm", 3))
    expected = [*pairs, ("transformers", 0)]
    assert {*rows} == {(engine, k, size) for engine, k in expected for size in sizes}
    assert all(row["wall_ms"] > 0 and row["blocks"] == 2 for row in rows.values())
    assert rows["vllm", 0, 1]["tokens_per_step"] == 1.0
    assert 1.0 < rows["vllm", 3, 1]["tokens_per_step"] <= 3.0
    assert rows["vllm", 3, 2]["bucket"] == 2 and rows["cgbench", 3, 2]["mode"] == "eager"
    assert found["omissions"] == ["transformers k=3: not measured: decodes without drafts here"]
    assert found["findings"] == [] and found["failures"] == []
    turns = {each["turns"] for each in found["engines"]}
    assert turns == {"cgbench k=0,3 and vllm k=0 and vllm k=3 and transformers k=0 in turn"}
    logs = {"cgbench-k0-3.log", "vllm-k0.log", "vllm-k3.log", "transformers-k0.log"}
    assert logs <= {file.name for file in output.iterdir()}
    assert "small vllm starts" in (output / "vllm-k0.log").read_text()
    assert "wall ms / step" in (output / "engines.md").read_text()


def test_each_engine_has_a_run_directory_like_any_other(measured: tuple[Done, Path]) -> None:
    _, output = measured
    run = RunDirectory.open(output / "vllm")
    latency = run.latency()
    assert run.record.complete and {*latency["engine"]} == {"vllm"}
    assert {*latency["timed_by"]} == {"wall"} and {*latency["scope"]} == {"phase"}
    drafting = latency[latency["spec_tokens"] == 3]
    assert drafting["mean_acceptance_length"].between(1.0, 3.0).all()
    assert drafting["acceptance_rate_per_pos"].str.endswith(";0.00").all()
    engine = run.record.engine
    assert engine["version"] == "0.26.0" and engine["policy"] == "vllm-0.26"
    assert engine["facts"]["attention"] == "SMALL_ATTN" and engine["facts"]["capture_s"] == "1"
    phases = {(each["spec_tokens"], each["phase"]) for each in engine["phases"]}
    assert phases == {(0, "verify"), (3, "verify"), (3, "draft_first"), (3, "draft_rest")}
    assert len(engine["profiles"]) == 4
    own = RunDirectory.open(output / "cgbench").latency()
    assert {*own["engine"]} == {"cgbench"} and {*own["timed_by"]} == {"device"}
    # Both decode the same prompts.
    samples = run.samples()
    assert len(samples) == 4 * 2 * 2


@pytest.mark.parametrize("name", ["cgbench", "vllm", "transformers"])
def test_the_commands_of_run_directories_read_it(
    measured: tuple[Done, Path], tmp_path: Path, name: str
) -> None:
    folder = measured[1] / name
    assert cgbench("show", folder).code == 0
    compared = cgbench("compare", folder, folder)
    assert compared.code in (0, 4), compared.stderr
    assert cgbench("report", folder, "--output", tmp_path / "page.html").code == 0
    tuned = cgbench("tune", folder)
    assert tuned.code in (0, 4), tuned.stderr
    assert ("no acceptance is known" in tuned.stdout) == (name == "transformers")


def test_engines_are_not_compared_by_the_gate(measured: tuple[Done, Path]) -> None:
    done = cgbench("compare", measured[1] / "cgbench", measured[1] / "vllm")
    assert done.code == 3 and "engine: cgbench in BASE, vllm in NEW" in done.stdout + done.stderr


WITH_ANOTHER = ("start", "exit", "hang")
"""An exception, an end and a silence: the other engine's run stays after each."""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("import", "start: ImportError: libsmall.so.1"),
        ("start", "start: ValueError: No valid attention backend found"),
        ("memory", "start: OutOfMemoryError: CUDA out of memory"),
        ("exit", "ended in start with exit code 7"),
        ("step", "steps: RuntimeError: CUDA error: an illegal memory access"),
        ("hang", "took more than 3 s"),
    ],
)
def test_an_engine_that_fails_is_a_line_with_its_log_and_the_others_stay(
    tiny: Path, tmp_path: Path, name: str, words: str
) -> None:
    with_another = name in WITH_ANOTHER
    done = peers(
        tiny,
        tmp_path / "out",
        *VLLM,
        *("--engine-env", f"vllm:SMALL_VLLM_FAULT={name}"),
        *(("--engine", "sglang", "--engine-site", f"sglang={SITE}") if with_another else ()),
        *("--spec-tokens", 0, "--step-timeout", 3),
    )
    assert done.code == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("vllm ")]
    (line,) = [line for line in lines if words in line]
    log = tmp_path / "out" / "vllm-k0.log"
    assert line.endswith(f"Its log is {log}") and log.exists()
    assert line in done.stdout
    if with_another:
        assert RunDirectory.open(tmp_path / "out" / "sglang").record.complete
    assert not (tmp_path / "out" / "vllm").exists()
    assert "Traceback" not in done.stderr


def test_a_batch_size_that_was_measured_before_a_crash_is_kept(tiny: Path, tmp_path: Path) -> None:
    done = peers(
        tiny,
        tmp_path / "out",
        *VLLM,
        *("--engine-env", "vllm:SMALL_VLLM_FAULT=late"),
        *("--spec-tokens", 0, "--batch-sizes", "1,2"),
    )
    assert done.code == 3
    run = RunDirectory.open(tmp_path / "out" / "vllm")
    assert run.latency()["batch_size"].tolist() == [1] and not run.record.complete
    assert "illegal memory access" in run.record.warnings[-1]
    refused = cgbench("compare", run.path, run.path)
    assert refused.code == 3 and "vllm failed" in refused.stdout + refused.stderr


def test_graphs_that_differ_are_a_finding_with_both_lists(tiny: Path, tmp_path: Path) -> None:
    asked = (*VLLM, "--engine-env", "vllm:SMALL_VLLM_FAULT=graphs", "--spec-tokens", 2)
    sizes = ("--max-num-seqs", 20, "--batch-sizes", 17)
    done = peers(tiny, tmp_path / "out", *asked, *sizes, "--fail-on-graphs")
    assert done.code == 1, done.stderr
    line = (
        "vllm 0.26.0: k=2, draft_rest: graphs planned at 1, 2, 4, 8, 16 requests, "
        "captured at 1, 2, 4, 8 requests"
    )
    assert line in done.stdout and "| **no** |" in done.stdout


def test_runner_v1_drafts_without_whole_graphs(tiny: Path, tmp_path: Path) -> None:
    """Findings alone are no failure: ``--fail-on-graphs`` is not asked for."""
    asked = (*VLLM, "--engine-env", "vllm:VLLM_USE_V2_MODEL_RUNNER=0", "--spec-tokens", 3)
    done = peers(tiny, tmp_path / "out", *asked, "--json")
    found = json.loads(done.stdout)
    assert done.code == 0 and len(found["findings"]) == 2
    assert all("Runner V1 drafts without full graphs" in line for line in found["findings"])


def test_flags_that_the_engine_is_given_decide_the_plan_too(tiny: Path, tmp_path: Path) -> None:
    listed = 'vllm:compilation_config={"cudagraph_capture_sizes": [1, 3, 6]}'
    asked = (*VLLM, "--engine-arg", listed, "--spec-tokens", 2, "--batch-sizes", "2,3")
    done = peers(tiny, tmp_path / "out", *asked, "--json", "--one-at-a-time")
    found = json.loads(done.stdout)
    assert found["findings"] == []
    rows = {row["batch_size"]: row for row in found["rows"]}
    assert rows[2]["bucket"] == 2 and rows[3]["bucket"] is None and rows[3]["mode"] == "eager"
    record = RunDirectory.open(tmp_path / "out" / "vllm").record
    assert json.loads(record.engine["arguments"])["compilation_config"]
    assert record.environment["engine_version"] == "0.26.0"


def bad(code: int, arguments: str, *words: str) -> Any:
    return pytest.param(code, arguments.split(), words, id=arguments)


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        bad(2, "--engine vllm", "vLLM is not installed", "`pip install vllm`", "--engine-python"),
        bad(2, "--engine sglang", "SGLang is not installed", "`pip install sglang`"),
        bad(2, "--engine tgi", "--engine tgi: unknown"),
        bad(2, "--engine vllm --engine-site vllm=/tmp", "vLLM is not installed"),
        bad(2, "--engine cgbench --peers eager", "--peers"),
        bad(2, "--engine cgbench --engine-arg vllm:a=1", "--engine vllm is not asked for"),
        bad(2, "--engine cgbench --steps 0", "--steps 0"),
        bad(2, "--routing balanced", "--routing", "goes with --engine"),
    ],
)
def test_a_bad_flag_is_named_and_nothing_is_started(
    tiny: Path, tmp_path: Path, code: int, arguments: list[str], words: tuple[str, ...]
) -> None:
    assert "vllm" not in os.listdir(Path(os.__file__).parent / "site-packages")
    cgbench("peers", tiny, "--device", "cpu", "--output", tmp_path / "out", *arguments).refused(
        code, *words
    )
    assert not (tmp_path / "out").exists()


def test_a_preset_is_written_for_the_engine(tmp_path: Path) -> None:
    done = cgbench(
        "peers",
        "preset:qwen3-0.6b",
        *FAST[:4],
        *("--steps", 2, "--rounds", 2, "--spec-tokens", "0,3", "--output", tmp_path / "out"),
        *VLLM,
    )
    assert done.code == 0, done.stderr
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert "load_format dummy" in (tmp_path / "out" / "vllm-k0.log").read_text()
    assert "without an MTP head" in done.stdout and "Weights are random" in done.stdout


def test_sglang_is_driven_by_its_stream_and_its_traces_are_summed(
    tiny: Path, tmp_path: Path
) -> None:
    sglang = ("--engine", "sglang", "--engine-site", f"sglang={SITE}", "--spec-tokens", "0,2")
    done = peers(tiny, tmp_path / "out", *sglang, "--batch-sizes", "1,2", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {(row["spec_tokens"], row["batch_size"]): row for row in found["rows"]}
    assert rows[0, 2]["tokens_per_step"] == 1.0 and rows[2, 2]["tokens_per_step"] == 1.5
    # Eight profiled steps with 16 kernels of 40 microseconds.
    assert rows[0, 1]["kernels_per_step"] == 2.0
    assert abs(rows[0, 1]["gpu_busy_ms"] - 0.08) < 1e-9
    assert rows[2, 2]["bucket"] == 2
    assert "small sglang ends" in (tmp_path / "out" / "sglang-k0.log").read_text()


def test_an_engine_in_another_environment_is_started_by_its_python(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "subprocess", subprocess)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={SITE}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    asked = ("--engine", "vllm", "--engine-python", f"vllm={python}", "--spec-tokens", 0)
    done = peers(tiny, tmp_path / "out", *asked)
    assert done.code == 0, done.stderr
    assert "| vllm | 0 | 1 |" in done.stdout
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    again = ("--engine", "vllm", "--engine-python", f"vllm={broken}")
    peers(tiny, tmp_path / "no", *again).refused(2, "vLLM is not installed")
