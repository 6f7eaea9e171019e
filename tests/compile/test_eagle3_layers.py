"""EAGLE-3 beside compiled layers: the states are taken outside of them, and the head's is one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from cgbench.compile.layers import compile_forwards
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from tests.support.compiled import BATCH_SIZES, MAX_NEW_TOKENS, decoded
from tests.support.eagle3 import (
    SPECULATORS_3,
    VLLM,
    Layout,
    make_head_folder,
    make_target,
)
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers


@pytest.fixture
def traced_only() -> Iterator[list[GraphModule]]:
    with traced_layers() as graphs:
        yield graphs


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("layout", "batch_sizes"),
    [(SPECULATORS_3, (5,)), (VLLM, (5, 1))],
    ids=lambda each: getattr(each, "name", ""),
)
def test_layers_trace_to_the_same_drafts(
    layout: Layout,
    batch_sizes: tuple[int, ...],
    tmp_path: Path,
    traced_only: list[GraphModule],
) -> None:
    check(tmp_path, layout, batch_sizes)
    assert traced_only


def check(folder: Path, layout: Layout, batch_sizes: tuple[int, ...]) -> None:
    """Tokens are plain greedy's and drafts are eager's."""
    target = make_target(folder / "target")
    head = make_head_folder(folder / "head", layout, target)
    prompts = random_prompts(max(BATCH_SIZES))
    expected = greedy_reference(reference_model(target), prompts, MAX_NEW_TOKENS)
    made = []
    for is_compiled in (False, True):
        model = load_tiny(target, head=head)
        if is_compiled:
            compile_forwards(model.target, model.head)
        spec = make_speculator(model, max_batch_size=max(BATCH_SIZES), room=64)
        assert decoded(spec, 2, 5) == expected
        made.append([drafts(spec, batch_size) for batch_size in batch_sizes])
    assert made[0] == made[1]


def drafts(spec: Speculator, batch_size: int) -> list[list[list[int]]]:
    """The drafts after each of a few iterations."""
    state = make_state(spec, 2, max(BATCH_SIZES))
    prefilled = prefill(spec, random_prompts(max(BATCH_SIZES))[:batch_size], 64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS)
    rows, made = state.rows(batch_size), []
    for _ in range(3):
        iteration(spec, rows)
        made.append(rows.drafts.tolist())
    return made
