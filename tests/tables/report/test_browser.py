"""A page in headless Chromium: drawn, silent, and sortable. Skipped by name where there is none."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cgbench.tables.report.report_page import html_report
from tests.support.recorded import recorded

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--dump-dom"),
    "--enable-logging=stderr",
)

PRESS = """
<script>
const button = document.querySelectorAll("th button")[4];
const values = () => [...button.closest("table").tBodies[0].rows]
  .map(row => row.cells[4].textContent).join(" ");
button.focus();
button.click();
const up = values(), sort = button.parentElement.getAttribute("aria-sort");
button.click();
document.title = JSON.stringify([document.activeElement === button, sort, up, values()]);
</script>
"""
"""A button takes Enter and the space bar as a click, by itself."""


def chromium() -> str:
    """``CGBENCH_CHROMIUM`` from the environment, or one on the path."""
    stated = os.environ.get("CGBENCH_CHROMIUM")
    found = stated or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: set CGBENCH_CHROMIUM to one")
    return found


def dumped(page: str, folder: Path) -> tuple[str, list[str]]:
    """The page's DOM after its scripts ran, and what the browser said on its console."""
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(
    ("run", "num_cells"), [("qwen3.5-0.8b-k0123", 84), ("mimo-7b-surface", 45)]
)
def test_a_real_run_is_drawn_without_a_word_and_sorts_by_its_buttons(
    run: str, num_cells: int, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    page = html_report([recorded(run)])
    dom, said = dumped(page.replace("</body>", f"{PRESS}</body>"), tmp_path)
    # What the page's policy forbids, a request among it, would be an error there.
    assert said == []
    assert dom.count('class="chart"') >= 6
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title
    has_focus, sort, up, down = title[1].strip("[]").replace("&quot;", '"').split(",")
    assert has_focus == "true" and sort == '"ascending"'
    values = [float(value) for value in up.strip('"').split()]
    assert values == sorted(values) and len(values) == num_cells
    assert [float(value) for value in down.strip('"').split()] == sorted(values, reverse=True)


def test_the_browser_would_tell_of_a_request(tmp_path: Path) -> None:
    page = html_report([recorded("mimo-7b-k3-compiled")])
    loading = page.replace("</body>", '<img src="https://example.org/x.png"></body>')
    _, said = dumped(loading, tmp_path)
    assert [line for line in said if "Content Security Policy" in line]
