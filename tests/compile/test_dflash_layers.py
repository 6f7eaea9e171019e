"""A DFlash drafter beside compiled layers: its own are compiled, and stay bidirectional."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from cgbench.compile.layers import compile_forwards
from tests.compile.test_eagle3_layers import drafts
from tests.support.compiled import BATCH_SIZES, MAX_NEW_TOKENS, decoded
from tests.support.dflash import MIXED, make_drafter, make_target
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_speculator,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


def test_layers_trace_to_the_same_drafts(tmp_path: Path) -> None:
    with traced_layers() as graphs:
        check(tmp_path, (5, 1))
    assert graphs


def check(folder: Path, batch_sizes: tuple[int, ...]) -> None:
    """Tokens are plain greedy's and drafts are eager's."""
    target = make_target(folder / "target")
    drafter = make_drafter(folder / "drafter", MIXED)
    prompts = random_prompts(max(BATCH_SIZES))
    expected = greedy_reference(reference_model(target), prompts, MAX_NEW_TOKENS)
    made = []
    for is_compiled in (False, True):
        model = load_tiny(target, head=drafter)
        spec = make_speculator(model, max_batch_size=max(BATCH_SIZES), room=64)
        if is_compiled:
            compile_forwards(model.target, model.head)
            assert decoded(spec, 3, 5) == expected
        made.append([drafts(spec, batch_size) for batch_size in batch_sizes])
    assert made[0] == made[1]
