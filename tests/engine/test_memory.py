"""What does not fit is refused with its bytes, before anything is allocated."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.engine import memory
from cgbench.engine.memory import check_memory, prompts_at_once
from cgbench.engine.prefill import _waves, prefill_slots
from cgbench.engine.prefill_memory import PeakMemory, prefill_bytes
from cgbench.engine.recurrent import RecurrentCache, cache_bytes
from cgbench.errors import OutOfMemoryError
from cgbench.kernels.mla import latent_prefill
from cgbench.models import experts
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.loading_plan import Loading, LoadingPlan, plan_loading
from cgbench.parallel.ranks import Ranks
from cgbench.request.options import RunOptions
from tests.support.options import make_options
from tests.support.tiny import load_tiny, make_checkpoint, make_speculator

GLM_WEIGHTS = 218_454_621_696
"""GLM-4.5-Air with its head, two bytes a value: 213.7 GB and 4.75 GB."""


def glm_weights(plan: LoadingPlan) -> int:
    """With what stays in float32: corrections, and since transformers 5.24 routers, of 46 layers
    with the head's."""
    keeps = kept_in_float32(plan.skeleton.target.model, torch.bfloat16)
    a_layer = 128 + (128 * 4096 if keeps("mlp.gate.weight") else 0)
    return GLM_WEIGHTS + 2 * 46 * a_layer


def test_a_model_over_the_memory_is_refused_with_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = planned("glm-4.5-air")
    options = make_options(spec_tokens=(0, 3), batch_sizes=(1, 8), max_batch_size=8)
    kv = 9 * (options.context_len + options.reach + 6) * 192_512
    # It is long to count, and asked for twice.
    monkeypatch.setattr(memory, "prefill_bytes", cache(prefill_bytes))
    prefill = prefill_bytes(plan.skeleton.target, 8, options.context_len)
    weights = glm_weights(plan)
    needed = weights + kv + prefill
    for available, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda *_, n=available: n)
        if fits:
            check_memory(plan, options)
            continue
        with pytest.raises(OutOfMemoryError) as error:
            check_memory(plan, options)
        for words in ("preset:glm-4.5-air", f"{weights:,}", f"{kv:,}", f"{available:,}"):
            assert words in str(error.value)
        assert f"prefill of 8 prompts {prefill:,})" in str(error.value)
        assert "--max-num-batched-tokens" in str(error.value)


@cache
def planned(name: str, keeps_latents: bool = True) -> LoadingPlan:
    where = (torch.device("cpu"), torch.bfloat16)
    return plan_loading(Loading(f"preset:{name}", None, True, *where, keeps_latents=keeps_latents))


def of_deepseek(
    max_batch_size: int, *, keeps_latents: bool = True, context_len: int = 1024, **changes: Any
) -> tuple[LoadingPlan, RunOptions]:
    plan = planned("deepseek-v3-6l", keeps_latents)
    options = make_options(
        spec_tokens=(0, 3),
        batch_sizes=(1, max_batch_size),
        max_batch_size=max_batch_size,
        context_len=context_len,
        max_num_batched_tokens=8192,
        **changes,
    )
    return plan, options


H200_BYTES = 149_000_000_000
"""What is free on one before anything is loaded, rounded down."""


def test_deepseeks_prefill_fits_beside_its_weights_and_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight prompts at once, with 30 GB to spare. Experts of all tokens at once would take twice
    as much as the rest of a layer."""
    plan, options = of_deepseek(8)
    monkeypatch.setattr(memory, "available_bytes", lambda *_: H200_BYTES - 30_000_000_000)
    check_memory(plan, options)
    in_chunks = prefill_bytes(plan.skeleton.target, 8, 1024)
    monkeypatch.setattr(experts, "TOKENS_A_CHUNK", 1 << 20)
    assert prefill_bytes(plan.skeleton.target, 8, 1024) > 2 * in_chunks


def test_what_the_prefill_does_not_leave_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 requests of 2,048 tokens more than the context, in the expanded form. Their latents take
    1.6 GB, and fit."""
    monkeypatch.setattr(memory, "available_bytes", lambda *_: H200_BYTES)
    plan, options = of_deepseek(64, max_new_tokens=2048, keeps_latents=False)
    with pytest.raises(OutOfMemoryError, match=r"KV of 65 slots .*, prefill of 8 prompts "):
        check_memory(plan, options)
    check_memory(*of_deepseek(64, max_new_tokens=2048))


def test_64_requests_of_8192_tokens_keep_under_5_gb_of_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven layers with the head's, 576 values of two bytes in each."""
    plan, options = of_deepseek(64, context_len=8192)
    kv = 65 * (8192 + options.reach + 6) * 7 * 576 * 2
    assert kv < 5_000_000_000
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 0)
    with pytest.raises(OutOfMemoryError, match=f"KV of 65 slots {kv:,}, prefill of 1 prompts"):
        check_memory(plan, options)


def test_ranks_divide_keys_and_values_and_keep_latents_whole() -> None:
    one = 7 * 576 * 2
    latent = of_deepseek(8)[0].skeleton
    expanded = of_deepseek(8, keeps_latents=False)[0].skeleton
    per_token = {n: latent.kv_bytes_per_token(torch.bfloat16, n) for n in (1, 8)}
    assert per_token == {1: one, 8: one}
    whole = 7 * 128 * (192 + 128) * 2
    per_token = {n: expanded.kv_bytes_per_token(torch.bfloat16, n) for n in (1, 8)}
    assert per_token == {1: whole, 8: whole // 8}


def test_qwen3_next_fits_two_gpus_and_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, at 64 requests. Two ranks have one KV head each, and half of the state."""
    monkeypatch.setattr(memory, "available_bytes", lambda *_: H200_BYTES)
    options = make_options(
        spec_tokens=(0, 3), batch_sizes=(1, 64), max_batch_size=64, context_len=1024
    )
    where = (torch.device("cpu"), torch.bfloat16)
    loading = Loading("preset:qwen3-next-80b-a3b", None, True, *where)
    plan = plan_loading(loading)
    shared = {n: replace(plan, request=replace(loading, ranks=Ranks(0, n))) for n in (2, 4)}
    check_memory(shared[2], options)
    monkeypatch.setattr(memory, "prefill_bytes", lambda *_, **__: 0)
    with pytest.raises(OutOfMemoryError, match="the device needs at least"):
        check_memory(plan, options)
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 0)
    state = cache_bytes(plan.skeleton.kv.state_shapes, 65, 4, torch.bfloat16)
    tokens = 65 * (1024 + options.reach + 6)
    # Twelve attention layers and the head's, a key and a value of 256 for each KV head.
    for num_ranks, kv, words in (
        (2, 13 * 1024, ""),
        (4, 13 * 1024, " with each KV head on 2 ranks"),
    ):
        held = f"{tokens * kv + state // num_ranks:,}"
        with pytest.raises(
            OutOfMemoryError, match=f"each of {num_ranks} .* {held}{words}, prefill"
        ):
            check_memory(shared[num_ranks], options)


def test_a_long_prompts_heads_are_expanded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks of 128 heads' keys and values, where all of them would take 335 MB more."""
    plan, _ = of_deepseek(8)
    monkeypatch.setattr(experts, "TOKENS_A_CHUNK", 512)
    chunked = prefill_bytes(plan.skeleton.target, 1, 8192)
    monkeypatch.setattr(latent_prefill, "CHUNK_BYTES", 1 << 40)
    assert prefill_bytes(plan.skeleton.target, 1, 8192) > chunked


@pytest.mark.parametrize(
    ("batch_size", "budget", "expected"), [(8, 8192, 8), (8, 3000, 2), (8, 100, 1), (2, 8192, 2)]
)
def test_waves_are_those_of_a_prefill(batch_size: int, budget: int, expected: int) -> None:
    options = make_options(
        batch_sizes=(1, batch_size),
        max_batch_size=16,
        context_len=1024,
        max_num_batched_tokens=budget,
    )
    assert prompts_at_once(options) == expected
    waves = _waves([[0] * 1024] * batch_size, budget)
    assert max(len(wave.prompts) for wave in waves) == expected


# Latent attention with values as wide as keys: torch keeps all scores where they are not.
WIDE_VALUES = {"glm4_moe_lite": {"v_head_dim": 24}}


@pytest.mark.parametrize("kind", ["mimo", "glm4_moe", "qwen3_moe", "glm4_moe_lite"])
def test_what_is_counted_without_storage_is_what_a_prefill_takes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts, "TOKENS_A_CHUNK", 64)
    folder = make_checkpoint(tmp_path, kind, **WIDE_VALUES.get(kind, {}))
    model = load_tiny(folder, with_head=False, dtype=torch.bfloat16)
    spec = make_speculator(model, max_batch_size=4, room=80)
    tokens, slots = torch.zeros(4, 64, dtype=torch.long), torch.arange(4)
    with torch.no_grad(), PeakMemory() as taken:
        prefill_slots(spec, tokens, torch.full((4,), 64), slots, torch.zeros(4))
    counted = prefill_bytes(model.skeleton.target, 4, 64)
    assert 0.6 * taken.peak_bytes < counted <= taken.peak_bytes


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
    monkeypatch.setattr(memory, "available_bytes", lambda *_: 0)
    with pytest.raises(OutOfMemoryError, match=f"KV of 9 slots {kv + state:,}"):
        check_memory(plan, options)


def test_the_cpu_has_the_machines_memory() -> None:
    whole = memory.available_bytes(torch.device("cpu"), 1)
    assert whole > 2**30
    assert memory.available_bytes(torch.device("cpu"), 2) == whole // 2
