"""docs/python.md: its examples run as they stand, in the order of the page."""

import re
from pathlib import Path

import pytest

import cgbench

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
FUNCTIONS = [name for name in cgbench.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_a_section_with_an_example(name: str) -> None:
    heading = name.capitalize().replace("_", " ")
    (section,) = re.findall(rf"^## {heading}$(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    assert f"cgbench.{name}(" in section.split("```python")[1]


def test_the_examples_run_in_the_order_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, "an example", "exec"), names)
    printed = capsys.readouterr().out
    assert "iteration_p50_ms" in printed and "('equality', 'holds')" in printed
    assert (tmp_path / "runs" / "base" / "latency.csv").is_file()
