"""Python functions as beginnings: a signature and its docstring, taken from source text."""

import ast
import random
import textwrap
import warnings
from collections.abc import Iterator

MIN_DOC_CHARS, MAX_DOC_CHARS = 20, 900
HEADERS = (
    "",
    "",
    "",
    "from typing import List\n\n\n",
    "from typing import List, Optional\n\n\n",
    "from typing import Dict, List, Tuple\n\n\n",
    "import math\n\n\n",
    "import re\nfrom collections import defaultdict\n\n\n",
)
REQUESTS = (
    "Complete the following Python function:\n\n```python\n{code}```",
    "Implement this function in Python.\n\n```python\n{code}```",
    "Please finish the function below and explain briefly how it works.\n\n{code}",
    "Write the body of this Python function:\n\n{code}",
    "{code}\nFill in the implementation of the function above.",
    "Write a Python function `{name}`. {doc}",
    "I need a Python function called `{name}` that does the following: {doc}",
)


def function_heads(source: str) -> Iterator[tuple[str, str, str]]:
    """(name, docstring, code) of every documented function; nothing where it is not Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
            doc = ast.get_docstring(node) or ""
            if MIN_DOC_CHARS <= len(doc) <= MAX_DOC_CHARS and '"""' not in doc:
                yield node.name, doc, head_code(node.name, signature(node), doc)


def signature(node: ast.FunctionDef) -> str:
    """``(args) -> result``, without a method's ``self``: the function is shown on its own."""
    args = node.args
    if args.args and args.args[0].arg in ("self", "cls") and not args.posonlyargs:
        del args.args[0]
        args.defaults = args.defaults[-len(args.args) :] if args.args else []
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(args)}){result}"


def head_code(name: str, signature: str, doc: str) -> str:
    """``def`` line and docstring, ending where the body begins."""
    quoted = textwrap.indent(f'"""{doc}\n"""' if "\n" in doc else f'"""{doc}"""', "    ")
    return f"def {name}{signature}:\n{quoted}\n"


def with_header(code: str, rng: random.Random) -> str:
    """The function as a file would begin: now and then after imports."""
    return rng.choice(HEADERS) + code


def request(name: str, doc: str, code: str, rng: random.Random) -> str:
    """The same function as a user of a chat would ask for it."""
    return rng.choice(REQUESTS).format(name=name, doc=doc, code=code)
