"""``cgbench compare`` as typed: every format, every exit code, every refusal."""

import io
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

import cgbench.cli.compare as compare_module
import cgbench.cli.console as console_module
from cgbench.gate.comparison import Rules, compare
from cgbench.tables.comparison import plain, terminal
from cgbench.words import Scope
from tests.support.command import Done, cgbench, python
from tests.support.runs import Made, h200_record, only, read_once, without

LOADED = """
import sys
sys.argv = ["cgbench", "compare", *sys.argv[1:]]
from cgbench.cli.app import main
try:
    main()
except SystemExit as ended:
    assert ended.code == 0, ended.code
print(*sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """base; again: the same machine; slow: one cell's acceptance fell, and it is 3 % slower."""
    folder = tmp_path_factory.mktemp("runs")
    b200 = {"environment": h200_record().environment | {"gpu": "NVIDIA B200"}}
    made = {
        "base": Made(),
        "again": Made(seed=1),
        "slow": Made(seed=1, slower=1.03),
        "noisy": Made(seed=1, noise=0.1),
        "other": Made(record=b200),
        "lacking": Made(edit=without(Scope.PHASE)),
        "tokens": Made(edit=only({"tokens_sha256": "bead"})),
    }
    for name, run in made.items():
        run.write(folder / name)
    with read_once(folder):
        yield folder


@cache
def judged(runs: Path, new: str, *words: str) -> Done:
    """``base`` against another, with what several tests read of it printed once."""
    return cgbench("compare", runs / "base", runs / new, *words)


@pytest.mark.parametrize(
    ("new", "code", "summary"),
    [
        ("base", 0, "28 same, exit code 0"),
        ("again", 0, "28 same, exit code 0"),
        ("slow", 1, "16 regressed, 12 same, exit code 1"),
        ("noisy", 4, "16 inconclusive, 12 same, exit code 4"),
        ("other", 3, "1 not comparable, exit code 3"),
        ("lacking", 3, "2 not comparable, 21 same, exit code 3"),
        ("tokens", 0, "28 same, exit code 0"),
    ],
)
def test_exit_codes_and_the_last_line(runs: Path, new: str, code: int, summary: str) -> None:
    done = judged(runs, new)
    assert (done.code, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1] == summary


def test_a_table_line_holds_its_evidence(runs: Path) -> None:
    done = judged(runs, "slow")
    [line] = [
        row
        for row in done.stdout.splitlines()
        if row.split()[:6] == ["regressed", "TPOT", "[ms]", "phase", "2", "8"]
    ]
    base, new, change, percent, low, _, _, high, _, blocks = line.split()[6:]
    assert float(new) / float(base) - 1 == pytest.approx(float(change) / 100, abs=1e-4)
    assert (percent, blocks) == ("%", "10/10")
    assert 2 < float(low) < float(change) < float(high) < 4


def test_reported_lines_are_shown_where_something_changed(runs: Path) -> None:
    done = judged(runs, "tokens")
    [line] = [row for row in done.stdout.splitlines() if "(reported)" in row]
    assert line.split() == "changed (reported) tokens iteration 2 8 c0ffee bead".split()


MARKDOWN = """\
### cgbench compare: tiny (random weights)

1 not comparable, exit code 3

| verdict | what | scope | k | batch [req] | BASE | NEW | change | interval | n |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| not comparable | run (GPU: NVIDIA H200 in BASE, NVIDIA B200 in NEW) |  |  |  |  |  |  |  |  |

- differs: gpu: NVIDIA H200 in BASE, NVIDIA B200 in NEW
- minimum effect 2 %. Each interval at 95 %, for 95 % over all gated ones. n: blocks, or \
processes of several (rows for acceptance, graphs for capture time) of BASE/NEW
- 1 not comparable, exit code 3
"""


def test_markdown(runs: Path) -> None:
    done = cgbench("compare", runs / "base", runs / "other", "--format", "markdown")
    assert (done.code, done.stdout) == (3, MARKDOWN)


def test_json_has_every_line(runs: Path) -> None:
    done = cgbench("compare", runs / "base", runs / "slow", "--format", "json")
    found = json.loads(done.stdout)
    assert (found["exit_code"], found["gated"]) == (1, {"regressed": 16, "same": 12})
    assert found["interval_level"] == pytest.approx(1 - 0.05 / 16)
    [line] = [
        line
        for line in found["lines"]
        if (line["what"], line["scope"], line["batch_size"]) == ("iteration latency", "eager", 1)
        and line["spec_tokens"] == 0
    ]
    assert (line["verdict"], line["gated"], line["unit"]) == ("regressed", False, "ms")
    assert (line["base_blocks"], line["new_blocks"]) == (10, 10)
    assert line["low"] < line["effect"] < line["high"]


def test_json_has_a_short_form(runs: Path) -> None:
    words = ("compare", runs / "base", runs / "slow")
    long, short = cgbench(*words, "--format", "json"), cgbench(*words, "--json")
    assert (short.code, short.stdout) == (1, long.stdout)
    assert cgbench(*words, "--json", "--format", "json").stdout == long.stdout
    refused = cgbench(*words, "--json", "--format", "junit")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == "error: --json: is --format json, not --format junit. Drop one\n"
    alone = cgbench("compare", runs / "base", "--thin-baseline", runs / "thin", "--json")
    assert alone.code == 2 and "--json: without NEW nothing is judged" in alone.stderr


def test_github_annotates_and_writes_the_step_summary(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.md"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    done = cgbench("compare", runs / "base", runs / "lacking", "--format", "github")
    assert done.code == 3
    assert done.stdout.splitlines() == [
        f"::error title=not comparable%3A cell%2C scope phase%2C k {k}%2C batch 8::missing in NEW"
        for k in (0, 2)
    ] + ["2 not comparable, 21 same, exit code 3"]
    summary = file.read_text()
    assert summary.startswith("before\n### cgbench compare: tiny (random weights)\n")
    assert "| not comparable | cell (missing in NEW) | phase | 0 | 8 |" in summary


def test_a_step_summary_that_cannot_be_written_is_named(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nowhere" / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    done = cgbench("compare", runs / "base", runs / "again", "--format", "github")
    done.refused(2, f"GITHUB_STEP_SUMMARY {file}: No such file or directory")


@pytest.mark.parametrize(
    ("new", "level", "words"),
    [
        ("slow", "error", "%25; interval +"),
        ("noisy", "warning", "interval "),
        ("tokens", "notice", "c0ffee -> bead"),
    ],
)
def test_github_levels(
    runs: Path, new: str, level: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    lines = cgbench("compare", runs / "base", runs / new, "--format", "github").stdout.splitlines()
    annotations = [line for line in lines if line.startswith(f"::{level} title=")]
    assert annotations and all(words in line for line in annotations)


@pytest.mark.parametrize(
    ("new", "failures", "errors"), [("again", 0, 0), ("slow", 16, 0), ("noisy", 0, 16)]
)
def test_junit(runs: Path, tmp_path: Path, new: str, failures: int, errors: int) -> None:
    file = tmp_path / "junit.xml"
    done = cgbench("compare", runs / "base", runs / new, "--format", "junit", "--output", file)
    assert done.stdout == "" and done.stderr.endswith(f"exit code {done.code}\n")
    suite = ElementTree.parse(file).getroot()
    assert [int(suite.attrib[name]) for name in ("tests", "failures", "errors")] == [
        28,
        failures,
        errors,
    ]
    assert len(suite.findall("testcase/failure")) == failures
    assert len(suite.findall("testcase/error")) == errors
    assert "iteration latency, scope phase, k 0, batch 1" in {
        case.attrib["name"] for case in suite.findall("testcase")
    }


def test_benchmark_json_is_what_smaller_is_better_reads(runs: Path) -> None:
    done = cgbench("compare", runs / "base", runs / "again", "--format", "benchmark-json")
    rows = json.loads(done.stdout)
    assert len(rows) == 24
    assert {row["unit"] for row in rows} == {"ms", "MB"}
    assert all(isinstance(row["value"], float) and row["name"] for row in rows)
    assert len({row["name"] for row in rows}) == 24


@pytest.mark.parametrize("to_file", [False, True])
def test_an_empty_benchmark_json_says_why(runs: Path, tmp_path: Path, to_file: bool) -> None:
    """github-action-benchmark refuses it without a reason."""
    file = tmp_path / "benchmark.json"
    words = ["--format", "benchmark-json", *(["--output", file] if to_file else [])]
    line = "--format benchmark-json is empty: no latency, TPOT or memory of NEW is gated. "
    eager = cgbench("compare", runs / "base", runs / "again", "--gate", "acceptance", *words)
    other = cgbench("compare", runs / "base", runs / "other", *words)
    for done, code, summary in (
        (eager, 0, "4 same, exit code 0"),
        (other, 3, "1 not comparable, exit code 3"),
    ):
        assert (done.code, done.stderr) == (code, f"{line}{summary}\n")
        assert done.stdout == ("" if to_file else "[]\n")
    assert not to_file or file.read_text() == "[]\n"


def test_output_holds_the_table_unfolded(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "table.txt"
    cgbench("compare", runs / "base", runs / "again", "--output", file)
    printed = judged(runs, "again").stdout
    assert file.read_text() == printed


def test_a_terminal_shows_what_a_pipe_gets(runs: Path) -> None:
    found = compare(runs / "base", runs / "slow", Rules())
    to = Console(file=io.StringIO(), width=200, color_system=None)
    for part in terminal(found):
        to.print(part, soft_wrap=True)
    shown, piped = (
        [line.split() for line in text.splitlines() if line.strip(" ─")]
        for text in (to.file.getvalue(), plain(found))
    )
    assert shown == piped and len(piped) > 28


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_cuts_no_number(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("TERM", kind)
    shown = io.StringIO()
    narrow = Console(file=shown, width=60, force_terminal=True, color_system=None)
    for module in (compare_module, console_module):
        monkeypatch.setattr(module, "console", lambda *, stderr=False: narrow)
    assert cgbench("compare", runs / "base", runs / "slow").code == 1
    assert "…" not in shown.getvalue()
    assert "iteration latency [ms]" in shown.getvalue()


def test_a_thin_baseline_is_written_and_compared_with(runs: Path, tmp_path: Path) -> None:
    thin = tmp_path / "baselines" / "h200"
    kept = cgbench("compare", runs / "base", "--thin-baseline", thin)
    assert (kept.code, kept.stdout) == (0, "")
    assert f"kept in {thin}: " in kept.stderr
    done = cgbench("compare", thin, runs / "slow")
    full = judged(runs, "slow")
    assert (done.code, done.stdout.splitlines()[1:]) == (1, full.stdout.splitlines()[1:])


def test_the_thin_baseline_of_a_comparison_is_new(runs: Path, tmp_path: Path) -> None:
    thin = tmp_path / "thin"
    assert cgbench("compare", runs / "base", runs / "slow", "--thin-baseline", thin).code == 1
    assert cgbench("compare", thin, runs / "slow").code == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "NEW: give the run directory to judge"),
        (["base", "--min-effect", "2"], "--min-effect 2: must be a share such as 2% or 0.02"),
        (["base", "--confidence", "100%"], "--confidence 100%: must be a share"),
        (["base", "--gate", "speed"], "--gate speed: unknown. Choose of iteration,"),
        (["nowhere"], "nowhere/run.json: missing or damaged"),
        (["base", "--thin-baseline", "base"], "exists already"),
        (["base", "--output", "nowhere/file"], "--output nowhere/file: "),
    ],
)
def test_refusals(
    runs: Path, words: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    cgbench("compare", "base", *words).refused(2, named)


@pytest.mark.parametrize(
    "flag",
    [
        *("--output report.txt", "--format json", "--min-effect 5%", "--confidence 99%"),
        *("--gate facts", "--allow-token-change"),
    ],
)
def test_a_baseline_alone_refuses_what_says_how_to_judge(
    runs: Path, flag: str, tmp_path: Path
) -> None:
    words = ("--thin-baseline", tmp_path / "thin", *flag.split())
    cgbench("compare", runs / "base", *words).refused(2, f"{flag.split()[0]}: ", "NEW")
    assert list(tmp_path.iterdir()) == []


def test_more_accepted_than_drafted_is_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "again", tmp_path / "edited")
    file = tmp_path / "edited" / "acceptance.csv"
    file.write_text(file.read_text().replace(",100,70", ",100,170"))
    done = cgbench("compare", runs / "base", tmp_path / "edited")
    done.refused(2, f"{file}: damaged: accepted is not 0 to drafted")


def test_compare_loads_no_torch(runs: Path) -> None:
    done = python("-c", LOADED, runs / "base", runs / "again")
    assert done.code == 0, done.stderr
    assert not set(done.stderr.split()) & {"torch", "transformers"}
