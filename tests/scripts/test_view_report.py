"""``scripts/trials/view_report.py``: what it counts, and its pictures. The browser is not asked."""

import io
from pathlib import Path

import pytest

from view_report import COLOURS, Found, row_of, write_picture


def test_a_row_counts_what_all_views_gave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "mine.html"
    page.write_text("x" * 1234)
    views = [
        Found(["refused"], [], ["no name", "pale"], True, b""),
        Found(["refused"], ["https://example.org/"], ["pale"], False, b""),
    ]
    assert row_of(page, views) == ["mine", "1,234", "2", "1", "3", "1"]
    assert capsys.readouterr().out.count("mine.html: ") == 6


def test_a_picture_keeps_a_colour_of_few_pixels(tmp_path: Path) -> None:
    """Text on a page has many greys, and a stage of a chart may be a pixel wide."""
    image = pytest.importorskip("PIL.Image")
    greys = image.linear_gradient("L")
    drawn = image.merge("RGB", (greys, greys.rotate(90), greys.rotate(180)))
    drawn.paste((213, 94, 0), (10, 10, 11, 30))
    written = io.BytesIO()
    drawn.save(written, "png")
    write_picture(written.getvalue(), tmp_path / "few.png")
    few = image.open(tmp_path / "few.png").convert("RGB")
    assert few.size == drawn.size and len(few.getcolors(1 << 20)) <= COLOURS
    kept = few.getpixel((10, 20))
    assert max(abs(a - b) for a, b in zip(kept, (213, 94, 0), strict=True)) <= 16
