"""The vocabulary: stages by name and back, and their names in one place alone."""

import ast
from collections.abc import Iterator

import pytest

from cgbench.words import PIECES, Stage, StageKind
from tests.test_imports import MODULES, source_of

SPELLED = {piece.value for piece in PIECES} | {StageKind.HOST_GAP.value, "begin"}


@pytest.mark.parametrize("kind", [*StageKind])
def test_a_stage_is_named_as_its_kind(kind: StageKind) -> None:
    assert str(Stage(kind)) == kind and Stage.parse(kind) == Stage(kind)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (Stage.draft(1), "draft_1"),
        (Stage.draft(2, 2), "draft_2"),
        (Stage.draft(2, 11), "draft_2..11"),
    ],
)
def test_a_draft_is_named_by_its_steps(stage: Stage, name: str) -> None:
    assert str(stage) == name and Stage.parse(name) == stage
    assert stage.kind is StageKind.DRAFT


@pytest.mark.parametrize(
    "name",
    [
        "",
        "wall",
        "draft_",
        "draft_x",
        "draft_01",
        "draft_2..2",
        "verify_1",
        "draft_1_2",
        "draft_ 1",
    ],
)
def test_no_other_name_is_a_stage(name: str) -> None:
    with pytest.raises(ValueError):
        Stage.parse(name)


def test_an_iteration_has_a_stage_a_draft() -> None:
    assert [*map(str, Stage.of_iteration(0))] == ["verify", "accept", "commit"]
    assert [*map(str, Stage.of_iteration(2))] == [
        "verify",
        "accept",
        "draft_1",
        "draft_2",
        "commit",
    ]


def spelled_stages(source: str) -> Iterator[str]:
    """What a module's code writes of stages as text, with its line."""
    for node in ast.walk(ast.parse(source)):
        if is_stage(node) or is_compared_with_iteration(node):
            yield f"line {node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]


def is_stage(node: ast.AST) -> bool:
    text = node.value if isinstance(node, ast.Constant) else None
    if not isinstance(text, str):
        return False
    # The start of an f-string is "draft_".
    is_draft = text.startswith("draft_") and not text.removeprefix("draft_").strip("0123456789")
    return text in SPELLED or is_draft


def is_compared_with_iteration(node: ast.AST) -> bool:
    """Elsewhere the word is a scope's, a graph's or a column's too."""
    return isinstance(node, ast.Compare) and any(
        isinstance(each, ast.Constant) and each.value == StageKind.ITERATION
        for each in node.comparators
    )


@pytest.mark.parametrize(
    "source", ['mark("verify")', 'f"draft_{step}"', '"draft_1"', 'samples["stage"] == "iteration"']
)
def test_a_stage_that_is_written_as_text_is_found(source: str) -> None:
    assert [*spelled_stages(source)]


def test_no_module_writes_a_stage_as_text() -> None:
    others = [module for module in MODULES if module != "cgbench.words"]
    found = [f"{name} {line}" for name in others for line in spelled_stages(source_of(name))]
    assert found == []
