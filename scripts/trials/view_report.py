"""What Chromium and axe-core find in a report's pages, and pictures of the first page's top.

    cgbench report RUN -o report.html
    python scripts/trials/view_report.py report.html --axe axe.min.js --output results/report

Each page is opened light and dark at 1,100 pixels, and at 390 pixels. Prints a Markdown row a page,
summed over these views: lines on the console, requests for anything but the page, findings of
axe-core, and views that scroll sideways.

Needs playwright and Pillow from PyPI, a Chromium, and axe-core's file from npm. No browser is
downloaded.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cgbench.tables.markdown import markdown_table

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync")
HEADINGS = ("page", "bytes", "console lines", "requests but the page", "axe-core", "sideways")
COLOURS = 256


class View(NamedTuple):
    """How a page is looked at, in CSS pixels. ``scale`` is that of its picture."""

    name: str
    width: int
    height: int
    scheme: str
    scale: float


VIEWS = (
    View("light", 1100, 2600, "light", 0.8),
    View("dark", 1100, 2600, "dark", 0.8),
    View("narrow", 390, 2600, "light", 1.0),
)


class Found(NamedTuple):
    """What a view of a page gave."""

    said: list[str]
    requests: list[str]
    findings: list[str]
    is_wide: bool
    picture: bytes


def look(browser: "Browser", page: Path, view: View, axe: str) -> Found:
    """Open a page, check it, and take a picture of its top."""
    size = {"width": view.width, "height": view.height}
    opened = browser.new_page(
        viewport=size, color_scheme=view.scheme, device_scale_factor=view.scale
    )
    said: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(page.absolute().as_uri())
    picture = opened.screenshot()
    is_wide = opened.evaluate("document.documentElement.scrollWidth > innerWidth")
    opened.evaluate(axe)
    findings = opened.evaluate("axe.run().then(found => found.violations.map(each => each.help))")
    opened.close()
    return Found(said, requests[1:], findings, is_wide, picture)


def row_of(page: Path, views: Sequence[Found]) -> list[str]:
    """A page's row. What was found is printed, because a number alone mends nothing."""
    for found in views:
        for line in (*found.said, *found.requests, *found.findings):
            print(f"{page.name}: {line}")
    return [
        page.stem,
        f"{page.stat().st_size:,}",
        str(sum(len(found.said) for found in views)),
        str(sum(len(found.requests) for found in views)),
        str(sum(len(found.findings) for found in views)),
        str([found.is_wide for found in views].count(True)),
    ]


def write_picture(picture: bytes, file: Path) -> None:
    """Write a PNG whose pixels are a byte each."""
    from PIL import Image

    opened = Image.open(io.BytesIO(picture)).convert("RGB")
    # The default method merges colours of few pixels, such as a chart's thinnest bar.
    few = opened.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE", help="files of report")
    parser.add_argument("--axe", type=Path, required=True, help="axe-core's axe.min.js")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="its program")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    axe = given.axe.read_text(encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=[*FLAGS])
        print(f"Chromium {browser.version}")
        found = {page: [look(browser, page, view, axe) for view in VIEWS] for page in given.pages}
        browser.close()
    for view, each in zip(VIEWS, found[given.pages[0]], strict=True):
        write_picture(each.picture, given.output / f"{view.name}.png")
    rows = [row_of(page, views) for page, views in found.items()]
    print(markdown_table(HEADINGS, rows, left=("page",)))


if __name__ == "__main__":
    main()
