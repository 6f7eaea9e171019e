"""What scripts write into docs is what they would write now."""

from collections.abc import Callable

import pytest

from draw_iteration import drawn
from index import page as index_of
from tests.docs.pages import ROOT
from write_reference import columns_page, flags_page

COMMAND = "python scripts/trials/write_reference.py --output docs"


@pytest.mark.parametrize(("name", "page"), [("flags.md", flags_page), ("columns.md", columns_page)])
def test_a_reference_page_is_that_of_the_code(name: str, page: Callable[[], str]) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page(), f"run `{COMMAND}`"


def test_the_picture_is_that_of_the_recorded_run() -> None:
    picture = (ROOT / "docs" / "iteration.svg").read_text(encoding="utf-8")
    assert picture == drawn(ROOT / "results" / "h200" / "default-k3")


def test_the_index_of_results_is_that_of_the_records() -> None:
    written = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert written == index_of(ROOT / "results"), "run `python scripts/trials/index.py results`"
