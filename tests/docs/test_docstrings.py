"""Public names are explained by full sentences: functions by what they do, classes by what they
are."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import MODULES, ROOT, tree_of

# These words begin a noun phrase or a clause, and never an imperative.
NO_VERB = re.compile(
    r"(?:Of|The|A|An|What|Whether|None|Every|Each|All|As|How|Where|When|Which|Who|Its|Their|In|On|"
    r"At|By|For|From|To|With|Without|If|No|One|Both|Only|It|This|That|These|\w+ing)\b"
)
# These words begin a fragment even if a verb follows. So does "Computes", unlike "Scales are".
NO_SUBJECT = re.compile(
    r"(?:What|Where|How|Whether|Everything|Every|Each|Drafts|Compute|Hold|Keep|Return|"
    r"(?!This\b|Its\b)[A-Z][a-z]+s(?! (?:are|can|have|hold|keep|may|must)\b))\b"
)
VERB = re.compile(
    r"\b(?:is|are|was|can|may|must|has|have|does|do|stands?|holds?|[a-z]{2,}s|did|answer|give|run|"
    r"say|read|print|raise|keep)\b"
)

Named = tuple[str, ast.ClassDef | ast.FunctionDef]


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Named]:
    """Yield the public classes and functions of a module, and their methods, by name."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef) or child.name.startswith("_"):
            continue
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public(child, f"{prefix}{child.name}.")


def first_sentence(node: ast.ClassDef | ast.FunctionDef) -> str | None:
    text = ast.get_docstring(node)
    return text and re.split(r"(?<=[.:?])\s", " ".join(text.split()))[0]


@cache
def explained_methods() -> set[str]:
    """What a protocol or a base class explains, each class that implements it need not."""
    return {
        name.rsplit(".", 1)[1]
        for path in MODULES
        for name, node in public(tree_of(path), "")
        if "." in name and ast.get_docstring(node)
    } | {"forward"}


def faults_of(name: str, node: ast.ClassDef | ast.FunctionDef) -> str | None:
    """Return what is wrong with a docstring."""
    sentence = first_sentence(node)
    if sentence is None:
        method = name.rsplit(".", 1)
        return None if len(method) == 2 and method[1] in explained_methods() else "no docstring"
    if isinstance(node, ast.FunctionDef):
        return f"begins without a verb: {sentence}" if NO_VERB.match(sentence) else None
    if NO_SUBJECT.match(sentence):
        return f"begins without a subject: {sentence}"
    return None if VERB.search(sentence) else f"no verb: {sentence}"


def test_public_names_have_full_sentences() -> None:
    found = {
        f"{path.relative_to(ROOT)} {name}": fault
        for path in MODULES
        for name, node in public(tree_of(path), "")
        if (fault := faults_of(name, node))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("def f(): ...", "no docstring"),
        ("def f():\n    'Whether it fits.'", "begins without a verb: Whether it fits."),
        ("def f():\n    'Return the seconds.'", None),
        ("class C:\n    'A time of one cell.'", "no verb: A time of one cell."),
        ("class C:\n    'What is found.'", "begins without a subject: What is found."),
        ("class C:\n    'A ``C`` is a time.'", None),
    ],
)
def test_the_rule_finds_a_fragment(code: str, fault: str | None) -> None:
    node = ast.parse(code).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    assert faults_of("f", node) == fault
