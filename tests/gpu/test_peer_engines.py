"""Engines in processes of their own on a GPU: busy time, kernels and graph launches."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.command import cgbench

FAST = (
    *("--device", "cuda", "--context-len", 64, "--spec-tokens", "0,3", "--batch-sizes", "1,4"),
    *("--steps", 4, "--rounds", 2, "--prompts", "random", "--json"),
)


@pytest.mark.gpu
def test_this_tool_is_busy_on_the_gpu_and_launches_one_graph_a_step(tmp_path: Path) -> None:
    done = cgbench("peers", "default", *FAST, "--engine", "cgbench", "--output", tmp_path / "out")
    assert done.code in (0, 4), done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert len(rows) == 4
    for row in rows:
        assert row["mode"] == "graph" and row["graph_launches_per_step"] == 1.0
        assert 0 < row["gpu_busy_ms"] <= 2 * row["wall_ms"] and row["kernels_per_step"] > 10


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_vllm_captures_what_is_planned(tmp_path: Path) -> None:
    model = ("preset:qwen3-0.6b", "--spec-tokens", 0, "--batch-sizes", "1,4")
    options = (*FAST[:4], *FAST[8:], "--engine", "vllm", "--output", tmp_path / "out")
    done = cgbench("peers", *model, *options)
    assert done.code in (0, 4), done.stderr
    found = json.loads(done.stdout)
    assert found["findings"] == []
    assert all(row["gpu_busy_ms"] > 0 for row in found["rows"])
