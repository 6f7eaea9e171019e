"""The source texts, and which of them may be trained on once some are held out."""

import sysconfig
from pathlib import Path

# Tables rather than code; pages that the documentation holds again; files a build writes.
SKIPPED = ("encodings/", "pydoc_data/", "site-packages/", "test/cjkencodings/", "_sysconfigdata")

LONG_LINE_CHARS = 40
NEAR_COPY_FRAC = 0.1


def read_sources(docs: Path) -> dict[str, str]:
    """Every source text, keyed `Lib/...` or `Doc/...`."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = {f"Lib/{p.relative_to(stdlib).as_posix()}": p for p in stdlib.rglob("*.py")}
    found |= {f"Doc/{p.relative_to(docs).as_posix()}": p for p in docs.rglob("*.txt")}
    kept = {n: p for n, p in found.items() if not n.removeprefix("Lib/").startswith(SKIPPED)}
    texts = {name: read_utf8(path) for name, path in sorted(kept.items())}
    return {name: text for name, text in texts.items() if text.strip()}


def read_utf8(path: Path) -> str:
    """The text, or nothing: a few test files are in other encodings on purpose."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""


def training_files(files: dict[str, str], held_out: dict[str, str]) -> dict[str, str]:
    """All files that neither share a held-out file's name nor repeat its lines."""
    stems = {bare_name(name) for name in held_out}
    held_lines = {line for text in held_out.values() for line in long_lines(text)}
    return {
        name: text
        for name, text in files.items()
        if bare_name(name) not in stems and overlap(text, held_lines) < NEAR_COPY_FRAC
    }


def bare_name(name: str) -> str:
    """`heapq` for Lib/heapq.py, Lib/test/test_heapq.py and Doc/library/heapq.rst.txt alike."""
    return Path(name).name.split(".")[0].removeprefix("test_")


def long_lines(text: str) -> list[str]:
    """The lines long enough that two files share them only by copying."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if len(line) >= LONG_LINE_CHARS]


def overlap(text: str, held_lines: set[str]) -> float:
    lines = long_lines(text)
    return sum(line in held_lines for line in lines) / max(1, len(lines))
