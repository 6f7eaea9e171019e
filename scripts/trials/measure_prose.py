"""Count what makes prose hard to read: long sentences, commas and semicolons.

    python scripts/trials/measure_prose.py README.md docs/*.md

Code blocks, tables, headings and HTML comments are no prose. Code in a line counts as one word, and
so does a link. A list item begins a sentence of its own. A comma between two digits is no
comma.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_AT_P90 = 27
MOST_COMMAS = 1.1
MOST_SEMICOLONS = 0.05

FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
NO_PROSE = re.compile(r"^(\||#|!\[|    \S|\s*$)")
ITEM = re.compile(r"^\s*(?:[-*]|\d+\.) ")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"`[^`]+`")
COMMA = re.compile(r"(?<!\d),|,(?! ?\d)")
END = re.compile(r"(?<=[\w)\"'%*][.!?])[)\"']*\s+")


@dataclass(frozen=True)
class Prose:
    """The sentences of one or more texts, and what is counted in them."""

    sentences: tuple[str, ...]

    @property
    def words_at_p90(self) -> int:
        """The length that nine of ten sentences do not pass, in words."""
        lengths = sorted(len(sentence.split()) for sentence in self.sentences)
        return lengths[(9 * len(lengths) + 9) // 10 - 1]

    @property
    def commas(self) -> float:
        """Commas a sentence, without those in numbers and in lists of numbers."""
        found = sum(len(COMMA.findall(sentence)) for sentence in self.sentences)
        return found / len(self.sentences)

    @property
    def semicolons(self) -> float:
        """Semicolons a sentence."""
        return sum(sentence.count(";") for sentence in self.sentences) / len(self.sentences)

    @property
    def is_easy(self) -> bool:
        """Whether every count is within its limit."""
        return (
            self.words_at_p90 <= LONGEST_AT_P90
            and self.commas < MOST_COMMAS
            and self.semicolons < MOST_SEMICOLONS
        )


def prose_of(*texts: str) -> Prose:
    """The prose of Markdown texts."""
    return Prose(tuple(sentence for text in texts for sentence in sentences(text)))


def sentences(text: str) -> Iterator[str]:
    """Every sentence of a Markdown text, on one line each."""
    for block in blocks(COMMENT.sub("", FENCED.sub("\n", text))):
        plain = CODE.sub("Code", LINK.sub(r"\1", CODE.sub("Code", block)))
        yield from (found.strip() for found in END.split(plain) if re.search(r"\w", found))


def blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items, on one line each."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        shown = line.removeprefix("> ")
        ends = NO_PROSE.match(shown) and not (lines and shown.strip() and shown.startswith("    "))
        if (ends or ITEM.match(shown)) and lines:
            yield " ".join(lines)
            lines = []
        if not ends:
            lines.append(ITEM.sub("", shown).strip())


def main() -> None:
    """Print a row for each file, and one for all of them."""
    parser = argparse.ArgumentParser(description="Count words, commas and semicolons a sentence.")
    parser.add_argument("files", nargs="*", type=Path, help="Markdown files")
    parser.add_argument("--longest", type=int, default=0, help="print so many sentences too")
    arguments = parser.parse_args()
    texts = {str(path): path.read_text(encoding="utf-8") for path in arguments.files}
    print(f"{'file':32} sentences  p90 words  commas  semicolons")
    for name, part in [*texts.items(), *([("all", "\n\n".join(texts.values()))] if texts else [])]:
        found = prose_of(part)
        if found.sentences:
            print(
                f"{name:32} {len(found.sentences):9}  {found.words_at_p90:9}"
                f"  {found.commas:6.2f}  {found.semicolons:10.2f}"
                f"{'' if found.is_easy else '  hard'}"
            )
    every = prose_of(*texts.values()).sentences
    for sentence in sorted(every, key=lambda each: -len(each.split()))[: arguments.longest]:
        print(f"\n{len(sentence.split())} words: {sentence}")


if __name__ == "__main__":
    main()
