"""The CI recipes, run: the commands of the action, the workflow and the page, word for word."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cgbench.cli.values import parse_ints
from cgbench.rundir.store import RunDirectory
from tests.ci.recipes import ACTION, GATE, ROOT, Runner, blocks, load, run_action
from tests.support.runs import Made

H200 = "results/baselines/h200/default-k3"
CPU = "results/baselines/cpu/default-k3"


@pytest.fixture(scope="module")
def runner(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Where the page's first block, which makes a baseline, has been run."""
    made = Runner.make(tmp_path_factory.mktemp("ci"), tiny, prompts)
    done = made(blocks("sh")[0])
    assert done.returncode == 0, done.stderr
    baseline = RunDirectory.open(made.folder / H200).record
    assert baseline.thin and baseline.complete
    shutil.copytree(made.folder / H200, made.folder / CPU)
    return made


@pytest.fixture(autouse=True)
def forget_the_last_run(runner: Runner) -> None:
    shutil.rmtree(runner.folder / "cgbench-run", ignore_errors=True)
    (runner.folder / "summary.md").unlink(missing_ok=True)


def steps_of(workflow: dict, job: str) -> list[dict]:
    return workflow["jobs"][job]["steps"]


def inputs_of(workflow: dict, job: str) -> dict[str, str]:
    """What a job gives to the action."""
    (step,) = [
        each for each in steps_of(workflow, job) if "actions/cgbench" in each.get("uses", "")
    ]
    return step["with"]


def test_the_workflow_uses_the_action_that_is_there() -> None:
    for job in ("facts", "gpu"):
        (uses,) = [
            step["uses"] for step in steps_of(load(GATE), job) if "cgbench" in step.get("uses", "")
        ]
        assert ROOT / uses / "action.yml" == ACTION
        assert inputs_of(load(GATE), job).keys() <= load(ACTION)["inputs"].keys()


def test_the_gpu_job_waits_for_a_runner_that_is_named() -> None:
    job = load(GATE)["jobs"]["gpu"]
    assert job["if"] == "vars.CGBENCH_GPU_RUNNER != ''"
    assert job["runs-on"] == "${{ fromJSON(vars.CGBENCH_GPU_RUNNER) }}"
    baseline = inputs_of(load(GATE), "gpu")["baseline"]
    assert baseline == "results/baselines/${{ vars.CGBENCH_BASELINE || 'h200/default-k3' }}"


def test_the_action_as_the_page_uses_it(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = runner.folder / "summary.md"
    monkeypatch.setitem(runner.env, "GITHUB_STEP_SUMMARY", str(summary))
    (example,) = [block for block in blocks("yaml") if "uses: OWNER/cgbench" in block]
    inputs = inputs_of(yaml.safe_load(example), "gpu")
    assert inputs["baseline"] == H200
    done = run_action(runner, inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("exit code 0")
    assert summary.read_text().startswith("### cgbench compare: tiny")
    assert RunDirectory.open(runner.folder / "cgbench-run").record.thin
    install, measure, compare = runner.calls[-3:]
    assert Path(install.split()[-1]).resolve() == ROOT and (ROOT / "pyproject.toml").exists()
    assert measure == "cgbench run --spec-tokens 3 --thin --output cgbench-run"
    assert compare == f"cgbench compare {H200} cgbench-run --format github"


def test_the_workflows_job_without_a_gpu(runner: Runner) -> None:
    inputs = inputs_of(load(GATE), "facts")
    assert inputs["baseline"] == CPU
    done = run_action(runner, inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    # The same words as on the page, but for the format.
    (block,) = [each for each in blocks("sh") if "--device cpu" in each]
    run, compare = (words.split() for words in block.strip().splitlines())
    assert run == f"cgbench run {inputs['run']} --thin --output cgbench-run".split()
    assert compare == f"cgbench compare {CPU} cgbench-run {inputs['compare']}".split()


def test_the_jobs_without_a_gpu_has_a_baseline_of_its_own_words() -> None:
    words = inputs_of(load(GATE), "facts")["run"].split()
    given = dict(zip(words[::2], words[1::2], strict=True))
    record = RunDirectory.open(ROOT / CPU).record
    assert record.thin and record.complete
    assert record.arguments["device"] == given["--device"] == "cpu"
    for flag, name in (("--spec-tokens", "spec_tokens"), ("--batch-sizes", "batch_sizes")):
        assert record.arguments[name] == [*parse_ints(flag, given[flag])]
    assert {"weight_bytes", "kv_bytes"} <= record.model.keys()


@pytest.mark.parametrize(
    ("what", "code"), [("tokens", 1), ("buckets", 1), ("KV bytes", 1), ("nothing", 0)]
)
def test_the_page_without_a_gpu_catches_a_changed_fact(
    runner: Runner, tmp_path: Path, what: str, code: int
) -> None:
    """The page's compare, word for word, between the baseline and a copy with one fact changed."""
    (block,) = [each for each in blocks("sh") if "--device cpu" in each]
    compare = block.strip().splitlines()[1]
    copy = runner.folder / "cgbench-run"
    shutil.copytree(runner.folder / CPU, copy)
    spoil(copy, what)
    done = runner(compare)
    assert done.returncode == code, done.stdout + done.stderr
    lines = map(str.strip, done.stdout.splitlines())
    regressed = [line for line in lines if line.startswith("regressed")]
    assert all(what in line for line in regressed) and bool(regressed) == bool(code)


def spoil(path: Path, what: str) -> None:
    record = json.loads((path / "run.json").read_text())
    if what == "tokens":
        latency = pd.read_csv(path / "latency.csv", dtype=str, keep_default_na=False)
        latency.assign(tokens_sha256="bead").to_csv(path / "latency.csv", index=False)
    elif what == "buckets":
        record["plans"][-1]["batch_sizes"].pop()
    elif what == "KV bytes":
        record["model"]["kv_bytes"] += 1
    (path / "run.json").write_text(json.dumps(record))


def test_gitlab(runner: Runner) -> None:
    (block,) = [each for each in blocks("yaml") if "resource_group" in each]
    job = yaml.safe_load(block)["cgbench"]
    done = runner("\n".join(job["script"]), **job["variables"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runner.folder / job["artifacts"]["reports"]["junit"]).read_text().startswith("<?xml")
    assert (runner.folder / job["artifacts"]["paths"][0] / "run.json").exists()
    assert job["allow_failure"] == {"exit_codes": 4}


def test_github_action_benchmark(runner: Runner) -> None:
    base = Made().write(runner.folder / "gpu")
    Made(seed=1).write(runner.folder / "cgbench-run")
    (block,) = [each for each in blocks("yaml") if "benchmark-action" in each]
    write, publish = yaml.safe_load(block)
    done = runner(write["run"], BASELINE=str(base))
    assert done.returncode == 0, done.stderr
    assert publish["with"]["tool"] == "customSmallerIsBetter"
    rows = json.loads((runner.folder / publish["with"]["output-file-path"]).read_text())
    assert len(rows) == 24 and all({"name", "unit", "value"} <= row.keys() for row in rows)


STUB = """\
#!/usr/bin/env bash
[ "$1" = run ] && exit "$RUN_CODE"
exit "$COMPARE_CODE"
"""


@pytest.mark.parametrize(
    ("run_code", "compare_code", "inconclusive", "code"),
    [
        (0, 0, "fail", 0),
        (0, 1, "fail", 1),
        (0, 1, "warn", 1),
        (0, 3, "warn", 3),
        (0, 4, "fail", 4),
        (0, 4, "warn", 0),
        (4, 4, "warn", 0),
        (4, 1, "warn", 1),
        (1, 0, "warn", 1),
        (2, 0, "warn", 1),
        (3, 0, "warn", 1),
    ],
)
def test_what_the_action_makes_of_exit_codes(
    runner: Runner, tmp_path: Path, run_code: int, compare_code: int, inconclusive: str, code: int
) -> None:
    (tmp_path / "cgbench").write_text(STUB)
    (tmp_path / "cgbench").chmod(0o755)
    codes = {"RUN_CODE": str(run_code), "COMPARE_CODE": str(compare_code)}
    path = {"PATH": f"{tmp_path}:{runner.env['PATH']}"}
    stubbed = Runner(runner.folder, runner.env | codes | path)
    done = run_action(stubbed, {"baseline": H200, "inconclusive": inconclusive})
    assert done.returncode == code
