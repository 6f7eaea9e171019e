"""What tests on two devices share: their marks, the flags of a short run, and quick ranks."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.forkserver import forked_ranks

ON_TWO_DEVICES = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
SHORT = ("--iterations", 8, "--max-time", 0, "--max-new-tokens", 12, "--context-len", 16)
RANDOM = ("--prompts", "random")


@pytest.fixture(scope="module", autouse=True)
def quick_ranks() -> Iterator[None]:
    with forked_ranks():
        yield
