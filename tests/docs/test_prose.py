"""README and docs are easy to read, by the counts of ``scripts/trials/measure_prose.py``."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from measure_prose import LONGEST_AT_P90, MOST_COMMAS, Prose, prose_of, sentences
from tests.docs.pages import MODULES, PAGES, ROOT, tree_of

# Sentences that somebody stumbled over. Pieces of them, because lines are broken elsewhere.
STUMBLED_OVER = (
    "who writes the next exchange but one",
    "is another one for each k and batch size, for its draws are",
    "does not hold where what it is about was not there to try",
    "ended for a reason of its own is told of",
    "Six million parameters are 1 % of the floor",
)
CAUSAL_FOR = re.compile(r", for (?:it|its|they|their|this|these|those|no|what|there)\b")
README_LINES = 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_easy_to_read(page: Path) -> None:
    found = prose_of(page.read_text(encoding="utf-8"))
    longest = sorted(found.sentences, key=lambda sentence: -len(sentence.split()))[:5]
    assert found.is_easy, (found.words_at_p90, found.commas, found.semicolons, longest)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_gives_a_reason_by_for(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    assert not CAUSAL_FOR.findall(text)


def test_no_sentence_that_was_stumbled_over_is_left() -> None:
    files = [*PAGES, *ROOT.glob("results/**/*.md"), *ROOT.glob("scripts/**/*.md")]
    files += [*ROOT.glob("cgbench/**/*.py"), *ROOT.glob("scripts/**/*.py"), ROOT / "CHANGELOG.md"]
    texts = {path: " ".join(path.read_text(encoding="utf-8").split()) for path in files}
    found = [
        (path, words) for path, text in texts.items() for words in STUMBLED_OVER if words in text
    ]
    assert not found


def docstrings() -> Iterator[str]:
    for path in MODULES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


def test_docstrings_are_easy_to_read() -> None:
    """Semicolons are still more than pages may have."""
    found = prose_of(*docstrings())
    assert found.words_at_p90 <= LONGEST_AT_P90 and found.commas < MOST_COMMAS
    assert found.semicolons < 0.12


TEXT = """\
# A heading, no prose; none

One sentence, `a, b; c` in it, has 1,024 commas. A second one follows; it has a semicolon.

```
no, prose; here
```

- An item [with a link; here](x.md)
  goes on.
- Another

| a, table | is; none |
"""


def test_what_is_counted() -> None:
    assert [*sentences(TEXT)] == [
        "One sentence, Code in it, has 1,024 commas.",
        "A second one follows; it has a semicolon.",
        "An item with a link; here goes on.",
        "Another",
    ]
    found = prose_of(TEXT)
    assert (found.words_at_p90, found.commas, found.semicolons) == (8, 0.5, 0.5)
    assert not found.is_easy


@pytest.mark.parametrize(
    ("sentences_", "is_easy"),
    [
        (("word " * 27,), True),
        (("word " * 28,), False),
        (("a, b, c",), False),
        (("a, b", "c, d"), True),
        (("a; b",), False),
    ],
)
def test_the_limits(sentences_: tuple[str, ...], is_easy: bool) -> None:
    assert Prose(sentences_).is_easy == is_easy
