"""Single functions and classes of a source file, run without the rest of it."""

import __future__

import ast
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class MissingError(Exception):
    """A function that a release no longer has: its rule has to be read again."""


def taken(source: str, name: str, namespace: dict[str, Any], owner: str | None = None) -> Any:
    """The function or class ``name``, a method of ``owner`` where that is given.

    It is compiled alone, annotations unread, and sees nothing but ``namespace``. Raises
    ``MissingError`` where the source has none.
    """
    node = _find(ast.parse(source), name, owner)
    module = ast.Module(body=[node], type_ignores=[])
    flags = __future__.annotations.compiler_flag
    exec(compile(module, f"<{name}>", "exec", flags, dont_inherit=True), namespace)
    return namespace[name]


def _find(tree: ast.Module, name: str, owner: str | None) -> ast.stmt:
    body = tree.body
    if owner is not None:
        classes = [n for n in body if isinstance(n, ast.ClassDef) and n.name == owner]
        body = classes[0].body if classes else []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    where = f"{owner}.{name}" if owner else name
    raise MissingError(f"{where}: the release has no such function; read its rule again")


@contextmanager
def modules(stand_ins: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Modules that a function imports when it runs, with what it takes from each."""
    before = {name: sys.modules.get(name) for name in stand_ins}
    for name, contents in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, module_before in before.items():
            if module_before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module_before
