"""docs/python.md: its examples run in the order of the page, in less time than they state."""

import re
from pathlib import Path

import pytest

import cgbench
from tests.support.forked_engines import forked_engines

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# How long an example measures, and how many tokens it decodes.
FEW_TOKENS = "workload=WorkloadRequest(batch_sizes=[1], max_new_tokens=4, context_len=16)"
SHORTER = {
    "max_time_s=1)": "max_time_s=0)",
    "max_new_tokens=16)": "max_new_tokens=4, context_len=16)",
    "max_num_seqs=2), checks": f"max_num_seqs=2, spec_tokens=[1]), {FEW_TOKENS}, checks",
    "PeersRequest(peers": f"PeersRequest({FEW_TOKENS}, peers",
    "seconds=1, rounds=3": "seconds=0, rounds=2",
}
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
    code = "\n".join(EXAMPLES)
    for stated, shorter in SHORTER.items():
        assert code.count(stated) == 1
        code = code.replace(stated, shorter)
    with forked_engines():
        exec(compile(code, "the examples", "exec"), names)
    printed = capsys.readouterr().out
    assert "iteration_p50_ms" in printed and "('equality', 'holds')" in printed
    assert (tmp_path / "runs" / "base" / "latency.csv").is_file()
