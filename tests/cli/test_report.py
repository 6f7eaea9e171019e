"""``cgbench report`` and ``cgbench show`` on recorded H200 runs."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.command import cgbench
from tests.support.recorded import H200

MANY_K = H200 / "qwen3.5-0.8b-k0123"
REAL = H200 / "smollm2-humaneval-k3"
MIXTURE = H200 / "qwen3.5-35b-surface"


class Page(HTMLParser):
    """What a page holds: ids, what it would load, and cells by table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        sources = [found.get(name) for name in ("src", "href", "xlink:href", "data")]
        self.loads += [source for source in sources if source and not source.startswith("#")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("matplotlib")
    file = tmp_path_factory.mktemp("report") / "report.html"
    done = cgbench("report", MANY_K, MIXTURE, REAL, "-o", file)
    assert done.code == 0, done.stderr
    return file.read_text(encoding="utf-8")


def test_a_page_loads_nothing_and_is_small(page: str) -> None:
    assert Page(page).loads == []
    assert "default-src 'none'" in page
    assert len(page) < 3_000_000


def test_every_id_of_a_page_is_there_once_and_every_reference_is_met(page: str) -> None:
    ids = Page(page).ids
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(#|href="#)([^)"]+)', page)
    assert references and {*references} <= {*ids}


def test_every_chart_is_named_and_has_a_table_beside_it(page: str) -> None:
    sections = re.findall(r"<section.*?</section>", page, flags=re.DOTALL)
    drawn = [section for section in sections if "<svg" in section]
    assert len(drawn) >= 6
    for section in drawn:
        assert section.count('role="img" aria-label="') == section.count("<svg")
        assert "<table>" in section


def test_charts_take_the_pages_colour(page: str) -> None:
    assert "currentColor" in page and "#010203" not in page
    assert "prefers-color-scheme: dark" in page


def test_what_is_random_stated_or_drawn_is_marked(page: str) -> None:
    assert "random weights; acceptance is not measured: synthetic:0.8,0.6,0.4" in page
    assert "experts are drawn evenly, not by the router" in page
    assert "smollm2-135m-instruct on NVIDIA H200." in page


def test_markdown_holds_the_same_tables(page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    assert cgbench("report", MANY_K, MIXTURE, REAL, "-o", file).code == 0
    text = file.read_text(encoding="utf-8")
    titles = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", page)
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == titles
    assert text.count("| --- |") + text.count("---:") > 0
    assert text.count("\n### ") == page.count("<h3 ")


def test_a_definition_is_a_line_of_its_own(page: str, tmp_path: Path) -> None:
    """What explains the columns is a list already, and its dashes are not the page's words."""
    done = cgbench("report", MIXTURE, "-o", tmp_path / "report.md")
    assert done.code == 0, done.stderr
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- - " not in text and "\n- TPOT is the time per output token" in text
    assert "<li>TPOT is the time per output token" in page and "<li>- " not in page


def test_a_page_of_one_run_does_not_name_it_and_has_no_negative_nothing(tmp_path: Path) -> None:
    """One host gap of that run is -0.00015 ms."""
    file = tmp_path / "report.md"
    assert cgbench("report", H200 / "mimo-7b-surface", "-o", file).code == 0
    text = file.read_text(encoding="utf-8")
    assert "\n- acceptance is not measured: golden:glm-5.2-on (borrowed).\n" in text
    assert "-0.000" not in text


def test_definitions_are_folded_between_the_chart_and_its_table(page: str) -> None:
    found = page.index("<summary>What the columns mean</summary>")
    assert page.index("<svg") < found < page.index("Every cell")


@pytest.mark.parametrize("status", ["ok", "disturbed"])
def test_the_summary_holds_what_is_slow(status: str, tmp_path: Path) -> None:
    """A run without a cell that is ok has no advice. Its losses are told all the same."""
    copy = shutil.copytree(MIXTURE, tmp_path / "run")
    table = copy / "latency.csv"
    table.write_text(table.read_text().replace(",ok,", f",{status},"))
    file = tmp_path / "report.md"
    assert cgbench("report", copy, "-o", file).code == 0
    text = file.read_text(encoding="utf-8")
    assert ("## Which k" in text) == (status == "ok")
    assert "\n- Slow: 6.85 of 15.5 ms at batch size " in text


def test_a_name_from_a_run_cannot_leave_its_place(tmp_path: Path) -> None:
    from dataclasses import replace

    from tests.support.runs import Made

    label = "<script>alert(1)</script>"
    path = Made(
        edit=lambda cell: replace(cell, model=label),
        record={"model": {"label": label, "fingerprint": "f"}},
    )
    run = path.write(tmp_path / "run")
    pytest.importorskip("matplotlib")
    assert cgbench("report", run, "-o", tmp_path / "r.html").code == 0
    assert "<script>alert" not in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("output", ["report.pdf", "nowhere/report.html"])
def test_a_file_that_cannot_be_written_is_refused_early(output: str, tmp_path: Path) -> None:
    done = cgbench("report", MANY_K, "-o", tmp_path / output)
    done.refused(2, "--output", output)


def test_report_and_show_import_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cgbench.cli.app import app\n"
        f"app(['report', {str(REAL)!r}, '-o', {str(tmp_path / 'r.md')!r}], standalone_mode=False)\n"
        f"app(['show', {str(REAL)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_show_prints_the_tables_again() -> None:
    done = cgbench("show", MIXTURE)
    assert done.code == 0
    assert "iteration p50 [ms]" in done.stdout and "slow: 6.85 of 15.5 ms" in done.stdout
    found = json.loads(cgbench("show", MIXTURE, "--json").stdout)
    assert len(found["latency"]) == 28


def test_show_refuses_what_is_no_run(tmp_path: Path) -> None:
    cgbench("show", tmp_path).refused(2, str(tmp_path / "run.json"))


def test_show_says_that_a_run_has_no_cell(tmp_path: Path) -> None:
    copy = shutil.copytree(MIXTURE, tmp_path / "run")
    table = copy / "latency.csv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    done = cgbench("show", copy)
    assert done.code == 0 and "the run has no cell yet" in done.stderr
