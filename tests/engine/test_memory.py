"""What does not fit is refused with its bytes, before anything is allocated."""

import pytest
import torch

from cgbench.engine import memory
from cgbench.engine.memory import check_memory
from cgbench.engine.recurrent import RecurrentCache
from cgbench.errors import OutOfMemoryError
from cgbench.models.loading_plan import Loading, plan_loading
from tests.support.options import make_options

GLM_WEIGHTS = 218_454_621_696
"""GLM-4.5-Air with its head, in bfloat16: 213.7 GB and 4.75 GB."""


def test_a_model_over_the_memory_is_refused_with_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = (torch.device("cpu"), torch.bfloat16)
    plan = plan_loading(Loading("preset:glm-4.5-air", None, True, *where))
    options = make_options(spec_tokens=(0, 3), batch_sizes=(1, 8), max_batch_size=8)
    kv = 9 * (options.context_len + options.reach + 6) * 192_512
    for available, fits in ((GLM_WEIGHTS + kv, True), (GLM_WEIGHTS + kv - 1, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda _, n=available: n)
        if fits:
            check_memory(plan, options)
            continue
        with pytest.raises(OutOfMemoryError) as error:
            check_memory(plan, options)
        for words in ("preset:glm-4.5-air", f"{GLM_WEIGHTS:,}", f"{kv:,}", f"{available:,}"):
            assert words in str(error.value)


def test_recurrent_state_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bytes say is what a cache of that many slots takes."""
    where = (torch.device("cpu"), torch.bfloat16)
    plan = plan_loading(Loading("preset:qwen3.5-0.8b", None, True, *where))
    options = make_options(spec_tokens=(0, 3), batch_sizes=(1, 8), max_batch_size=8)
    cache = RecurrentCache(
        plan.skeleton.kv.state_shapes,
        max_batch_size=8,
        query_len=4,
        dtype=torch.bfloat16,
        device=torch.device("meta"),
    )
    buffers = [tensor for name, tensor in cache.tensors().items() if name != "length"]
    buffers += [tensor for pair in cache.prompt.values() for tensor in pair]
    state = sum(tensor.numel() * tensor.itemsize for tensor in buffers)
    kv = 9 * (options.context_len + options.reach + 6) * 14_336
    monkeypatch.setattr(memory, "available_bytes", lambda _: 0)
    with pytest.raises(OutOfMemoryError, match=f"KV of 9 slots {kv + state:,}"):
        check_memory(plan, options)


def test_the_cpu_has_the_machines_memory() -> None:
    assert memory.available_bytes(torch.device("cpu")) > 2**30
