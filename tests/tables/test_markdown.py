"""Markdown tables: one writer for all of them."""

import ast

from cgbench.tables.markdown import markdown_table
from tests.test_imports import MODULES, source_of


def test_a_table_with_its_rule_and_a_bar_that_ends_no_cell() -> None:
    table = markdown_table(("name", "[ms]"), [("a|b", "1.0"), ("c", "")], left=("name",))
    assert table.splitlines() == [
        "| name | [ms] |",
        "| --- | ---: |",
        "| a\\|b | 1.0 |",
        "| c |  |",
    ]


def test_no_other_module_writes_rows() -> None:
    """The texts that every row and every rule is made with."""
    made = {
        module
        for module in MODULES
        for node in ast.walk(ast.parse(source_of(module)))
        if isinstance(node, ast.Constant) and node.value in (" | ", "---:")
    }
    assert made == {"cgbench.tables.markdown"}
