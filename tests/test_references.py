"""Every number of the documentation that names a recorded value states that value."""

import re
from pathlib import Path

import pytest

from tests.support.references import references, unsourced

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "results").glob("*.md"), *(ROOT / "docs").glob("*.md")]
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_references_hold(document: Path) -> None:
    faults = [found.fault(ROOT) for found in references(document.read_text())]
    assert not [fault for fault in faults if fault]


@pytest.mark.parametrize("name", ["engine.md", "floor.md", "measurement.md"])
def test_pages_state_no_measurement_without_its_source(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    assert [*references(text)] and not unsourced(text, ROOT)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    (tmp_path / "run.csv").write_text(
        "scope,batch,ms\nphase,1,5.144\nphase,8,5.704\neager,1,61.5\n"
    )
    (tmp_path / "run.json").write_text(
        '{"accounts": [{"k": 3, "lines": [{"bytes": 2e9}, {"bytes": 4e9}]}, {"k": 0, "lines": []}]}'
    )
    (tmp_path / "run.md").write_text(
        "# A\n\n| way | us |\n|---|---:|\n| ours | 1,234.5 |\n\nEnd.\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "At k = 3 it takes 5.14 and 5.7 ms <!-- from run.csv; scope == 'phase'; ms -->.",
        "Five times 1,\n61.5<!-- from run.csv;\nscope == 'eager';\nms -->",
        "12.0 times <!-- from run.csv; batch == 1; ms.max() / ms.min() -->",
        "| 1 | 5.144 | 8 | 5.704 <!-- from run.csv; scope == 'phase'; batch, ms --> |",
        "6 GB <!-- from run.json#accounts.lines; k == 3; bytes.sum() / 1e9 -->",
        "1,234.5 us <!-- from run.md; way == 'ours'; us -->",
        "A comment of another kind <!-- like this --> is left alone.",
    ],
)
def test_a_reference_that_holds(recorded: Path, text: str) -> None:
    assert [found.fault(recorded) for found in references(text)] in ([None], [])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("5.15 ms <!-- from run.csv; scope == 'phase' and batch == 1; ms -->", "5.144"),
        ("5 and 6 <!-- from run.csv; scope == 'graph'; ms -->", "printed as []"),
        ("No number <!-- from run.csv; scope == 'eager'; ms -->", "printed as []"),
        ("61.5\n\nElsewhere <!-- from run.csv; scope == 'eager'; ms -->", "printed as []"),
        ("61.5 <!-- from run.csv; ; ms -->", "printed as ['61.5']"),
        ("61.5 <!-- from gone.csv; ; ms -->", "FileNotFoundError"),
        ("61.5 <!-- from run.csv; ; seconds -->", "UndefinedVariableError"),
        ("MiMo-7B <!-- from run.json#accounts; k == 3; k + 4 -->", "printed as []"),
    ],
)
def test_a_reference_that_does_not_hold(recorded: Path, text: str, word: str) -> None:
    (found,) = references(text)
    assert word in (found.fault(recorded) or "")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 5.14 ms.", ["5.14"]),
        ("5.144 ms <!-- from run.csv; batch == 1 and ms < 9; ms -->, once 6.1 ms.", ["6.1"]),
        ("5.144 ms <!-- from run.csv; batch == 1 and ms < 9; ms -->.\n\n5.144 ms.", ["5.144"]),
        ("| | ms |\n|---|---:|\n| phase | 5.144 |", ["| phase | 5.144 |"]),
        ("| | ms |\n|---|---:|\n| eager | 61.5 <!-- from run.csv; ms > 9; ms --> |", []),
        ("A context of 1,024 tokens in a `--max-time` of 30 s.", []),
    ],
)
def test_a_measurement_without_its_source(recorded: Path, text: str, found: list[str]) -> None:
    assert unsourced(text, recorded) == found


def test_a_comment_that_means_to_be_one_is_refused() -> None:
    with pytest.raises(ValueError, match="FILE; ROWS; VALUES"):
        [*references("5.14 <!-- results/h200/peers.json: ms -->")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_scripts_that_are_named_are_there(document: Path) -> None:
    text = document.read_text()
    links = [document.parent / link for link in re.findall(r"\]\(([^):#]+)", text)]
    scripts = [ROOT / name for name in re.findall(r"\bscripts/\w+\.py", text)]
    assert not [str(path) for path in [*links, *scripts] if not path.exists()]
