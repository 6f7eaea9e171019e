"""A tiny checkpoint with a tokenizer, prompts for it, and a machine that stays the same."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cgbench.measure import group, rounds, setup, stop_rule
from cgbench.rundir import environment
from tests.support.tiny import add_tokenizer, make_checkpoint

FEW_BLOCKS = 3
PROMPTS = ("def main():", "import os, sys", "a")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", "mimo", vocab_size=256)
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in PROMPTS))
    return file


@pytest.fixture(scope="session", autouse=True)
def one_commit() -> Iterator[None]:
    """A commit made while the tests run must not look like another build to ``--resume``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "environment", cache(environment.environment))
        yield


@pytest.fixture(scope="module", autouse=True)
def few_blocks() -> Iterator[None]:
    """Runs take fewer blocks a cell, and fewer iterations for the stages, where a test is about
    what a run writes and prints. ``tests/measure`` and ``--processes`` take the product's own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (stop_rule, rounds, group):
            patch.setattr(module, "MIN_BLOCKS", FEW_BLOCKS)
        patch.setattr(group, "STAGE_ITERATIONS", 3)
        yield
