"""Every Triton kernel compiled for Hopper without a GPU, from the calls that the engine makes:
what the interpreter lets pass, a compiler may not.

Each way through a kernel is compiled once, in the largest tile that has it: that one is the first
to spill. Not each pair of ways is, because a compilation takes a second.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from cgbench.engine.calls import Rows
from cgbench.engine.kv import KvCache
from cgbench.engine.recurrent import DecodeStates
from cgbench.engine.state import DecodeState
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.expert_draw import ExpertShape
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_rows import LatentNorms, PairRotary
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.kernels.moe.expert_products import (
    Choice,
    Experts,
    ExpertScales,
    Padding,
    SharedExpert,
)
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.models.quantised.kv_format import KvFormat
from tests.support.delta_nets import Case, random_cache, random_net, random_rows

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from cgbench.kernels import (  # noqa: E402
    triton_attention,
    triton_draw,
    triton_exchange,
    triton_gate,
    triton_linear,
    triton_norm,
    triton_read,
    triton_rotary,
    triton_rows,
    triton_splits,
    triton_winner,
)
from cgbench.kernels.fp8 import triton_halves, triton_pairs, triton_tokens  # noqa: E402
from cgbench.kernels.gdn import (  # noqa: E402
    gluon_recurrent,
    recurrent_launch,
    triton_recurrent,
)
from cgbench.kernels.mla import (  # noqa: E402
    gluon_latent,
    latent_launch,
    triton_heads,
    triton_latent,
    triton_latent_merge,
    triton_latent_rows,
)
from cgbench.kernels.moe import triton_experts, triton_route  # noqa: E402
from cgbench.kernels.windows import triton_block, triton_window  # noqa: E402

HOPPER = GPUTarget("cuda", 90, 32)
MODULES = (
    triton_attention,
    triton_draw,
    triton_gate,
    triton_linear,
    triton_norm,
    recurrent_launch,
    triton_rotary,
    triton_rows,
    triton_splits,
    triton_exchange,
    triton_winner,
    triton_experts,
    triton_route,
    triton_heads,
    latent_launch,
    triton_latent_merge,
    triton_latent_rows,
    triton_window,
    triton_block,
    triton_tokens,
    triton_halves,
    triton_pairs,
)


class NoDevice:
    """What Triton asks its driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture(scope="module")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this session alone; the tests share it, for a kernel takes long to compile."""
    folder = tmp_path_factory.getbasetemp()
    # A worker's own folder is in that of its session.
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "triton"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, triton_cache: Path) -> list[Any]:
    """Kernels are compiled where they would be launched, and collected here."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(triton_cache))
    kernels: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    for module in MODULES:
        monkeypatch.setattr(module, "early", lambda device: True)
        monkeypatch.setattr(module, "launch_keywords", lambda device: {"launch_pdl": True})
    monkeypatch.setattr(triton_exchange, "_timeout_ns", lambda device: 10**11)
    monkeypatch.setattr(triton_splits, "num_multiprocessors", lambda device: 132)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice())
    return kernels


def rows_kernels() -> None:
    logits = torch.zeros(4, 4, 150_000, dtype=torch.bfloat16)
    # Also as many rows as 2,048 requests of nine.
    for shape in ((4, 4, 150_000), (300, 1, 512), (2048, 9, 64)):
        triton_rows.argmax(logits.new_zeros(shape))
    for k, eos in ((0, ()), (3, (1, 2, 3))):
        state = DecodeState(
            spec_tokens=k,
            max_batch_size=4,
            scratch_slot=4,
            hidden_size=8,
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            eos_token_ids=eos,
        )
        chosen = torch.zeros(4, k + 1, dtype=torch.long)
        for rates in (None, (0.5,) * k):
            triton_rows.accept(state.rows(4), chosen, rates)
        triton_rows.commit(state.rows(4))


NORM = triton_norm.Norm(torch.zeros(4096, dtype=torch.bfloat16), 1e-6, 0.0)


def linear_kernels() -> None:
    weight = torch.empty(22_016, 4096, dtype=torch.bfloat16)
    few, x = (torch.zeros(num_rows, 4096, dtype=torch.bfloat16) for num_rows in (4, 64))
    triton_linear.linear(few, weight, None)
    # Wide tiles of all outputs at once.
    triton_linear.linear(x, weight, None, is_gated=True)
    # In splits.
    triton_linear.linear(few, weight[:4096], None, is_gated=True)
    triton_linear.linear(x, weight[:4096], None, residual=x)
    table = torch.zeros(64, 128, dtype=torch.bfloat16)
    rotary = triton_rotary.Rotary(table, table, 5120)
    product = triton_linear.linear(x, weight[:6144], weight[:6144, 0].contiguous(), rotary=rotary)
    triton_rotary.rotate(product, rotary)
    triton_norm.norm(x, NORM)
    triton_norm.add_norm(x, x, NORM)
    triton_gate.gated(torch.zeros(40, 22_016, dtype=torch.bfloat16))


def scaled_kernels() -> None:
    row_blocks = torch.zeros(22_016, dtype=torch.int32)
    weight = torch.empty(22_016, 4096, dtype=torch.float8_e4m3fn)
    scales = triton_linear.Scales(torch.ones(172, 32), row_blocks)
    of_few = triton_linear.Scales(scales.scale, row_blocks[:4096])
    few, x, many = (torch.zeros(num_rows, 4096, dtype=torch.bfloat16) for num_rows in (4, 32, 256))
    triton_linear.linear(few, weight, None, scales=scales)
    triton_linear.linear(x, weight[:4096], None, residual=x, scales=of_few)
    # Rows in float16.
    triton_linear.linear(x, weight, None, is_gated=True, scales=scales)
    pairs = triton_pairs.pairs_of(many, torch.ones(172, 30), 32)
    parts = torch.zeros(len(pairs.stored), 22_016)
    triton_pairs.sums_of(parts, 256, parts[0], torch.bfloat16, is_gated=True)
    triton_pairs.sums_of(parts[:, :4096].contiguous(), 256, None, torch.bfloat16, residual=many)
    triton_linear.linear(many, weight, None, is_gated=True, scales=scales)


def w8a8_kernels() -> None:
    """Of MiMo-7B's shapes, of few rows and of many, and of GLM-4.5-Air's experts."""
    row_blocks = torch.zeros(22_016, dtype=torch.int32)
    weight = torch.empty(22_016, 4096, dtype=torch.float8_e4m3fn)
    scales = triton_linear.Scales(torch.ones(172, 32), row_blocks, True)
    of_few = scales._replace(row_blocks=row_blocks[:4096])
    of_heads = scales._replace(row_blocks=row_blocks[:6144])
    few, many = (torch.zeros(num_rows, 4096, dtype=torch.bfloat16) for num_rows in (4, 256))
    triton_linear.linear(few, weight, None, is_gated=True, scales=scales)
    # In splits, which many rows are not.
    triton_linear.linear(few, weight[:4096], None, residual=few, scales=of_few)
    table = many.new_zeros(256, 128)
    rotary = triton_rotary.Rotary(table, table, 5120)
    triton_linear.linear(many, weight[:6144], None, rotary=rotary, scales=of_heads)
    # Scales of channels, and of columns that fill no instruction.
    for num_blocks in (1, 256):
        of_rows = triton_linear.Scales(torch.ones(172, num_blocks), row_blocks, True)
        triton_linear.linear(few, weight, None, scales=of_rows)
    experts = scaled_experts(1408, 11)
    for num_tokens in (1, 2048):
        apply_experts(replace(experts, is_w8a8=True), num_tokens)


def attention_kernels() -> None:
    shape = ((8, 128), (8, 128))
    cpu = torch.device("cpu")
    slots = torch.zeros(1, dtype=torch.long)
    for dtype in (torch.bfloat16, torch.float32):
        cache = KvCache({0: shape}, max_batch_size=1, room=16, dtype=dtype, device=cpu)
        rows = Rows(cache, slots, slots[:, None] + torch.arange(4))
        query = torch.zeros(1, 32, 4, 128, dtype=dtype)
        qkv = AttentionInput(query, query[:, :8], query[:, :8], 0.1, None)
        triton_attention.decode(cache.layers[0], qkv, rows.slots, rows.positions, rows.cache.room)
    # A parallel drafter's block, at the largest k.
    query = torch.zeros(1, 32, 17, 128, dtype=torch.bfloat16)
    block = AttentionInput(query, query[:, :8], query[:, :8], 0.1, None, is_causal=False)
    cache = KvCache({0: shape}, max_batch_size=1, room=32, dtype=query.dtype, device=cpu)
    rows = Rows(cache, slots, torch.arange(17)[None])
    triton_attention.decode(cache.layers[0], block, rows.slots, rows.positions, 32)
    # Of a window and many requests, whose group is shared.
    attention_with_sinks(64, 7)


def attention_with_sinks(batch: int, query_len: int) -> None:
    """As MiMo-V2-Flash's sliding layers: keys of 192 and values of 128."""
    shape, dtype = ((8, 192), (8, 128)), torch.bfloat16
    cpu = torch.device("cpu")
    cache = KvCache({0: shape}, max_batch_size=batch, room=16, dtype=dtype, device=cpu)
    slots = torch.zeros(batch, dtype=torch.long)
    positions = slots[:, None] + torch.arange(query_len)
    query = torch.zeros(batch, 64, query_len, 192, dtype=dtype)
    value = torch.zeros(batch, 8, query_len, 128, dtype=dtype)
    qkv = AttentionInput(query, query[:, :8], value, 0.1, 129, torch.zeros(64, dtype=dtype))
    triton_attention.decode(cache.layers[0], qkv, slots, positions, 16)


def fp8_kv_kernels() -> None:
    """Of MiMo-7B's shape and MiMo-V2-Flash's, with a window and sinks. Scales of each token and of
    the checkpoint. Float32 products are compiled with keys of their own dtype."""
    cpu = torch.device("cpu")
    by_token, by_tensor = KvFormat(is_fp8=True), KvFormat(True, {0: (1.0, 1.0)})
    for dtype, heads, key_size, length, kv_format, window in (
        (torch.float16, 32, 128, 1, by_tensor, None),
        (torch.bfloat16, 64, 192, 4, by_token, 129),
    ):
        shape = ((8, key_size), (8, 128))
        cache = KvCache(
            {0: shape}, max_batch_size=64, room=16, dtype=dtype, device=cpu, kv_format=kv_format
        )
        slots = torch.zeros(64, dtype=torch.long)
        positions = slots[:, None] + torch.arange(length)
        query = torch.zeros(64, heads, length, key_size, dtype=dtype)
        sinks = torch.zeros(heads, dtype=dtype) if window == 129 else None
        new = query[:, :8], query[:, :8, :, :128]
        qkv = AttentionInput(query, *new, 0.1, window, sinks)
        triton_attention.decode(cache.layers[0], qkv, slots, positions, 16)


def latent_kernels() -> None:
    """Of DeepSeek-V3's shape, whole and as eight ranks share it, and of GLM-4.7-Flash's."""
    every_latent_call()
    # Of few splits, which W_UV's product merges.
    latent_call(1, 1, 16, (192, 256), torch.bfloat16, room=1088)
    table = torch.zeros(2, 4, 64, dtype=torch.bfloat16)
    x = torch.zeros(2, 4, 1536 + 576, dtype=torch.bfloat16)
    norms = LatentNorms(x[0, 0, :1536], 1e-6, x[0, 0, :512], 1e-6)
    triton_latent_rows.latent_rows(x, norms, PairRotary(table, table))


def hopper_latent_kernels() -> None:
    with mock.patch.object(triton_latent, "is_hopper", lambda device: True):
        every_latent_call()
        # Of a tile that is not full.
        latent_call(1, 4, 20, (192, 256), torch.bfloat16)


def every_latent_call() -> None:
    """Many rows, whose queries are rotated as they are loaded, and few that are rotated before."""
    latent_call(64, 4, 128, (128, 128), torch.bfloat16, in_pairs=True)
    latent_call(1, 1, 16, (128, 128), torch.bfloat16)


def scaled_latent_kernels() -> None:
    """The attention is that of ``latent_kernels``."""
    latent_call(64, 4, 128, (128, 128), torch.bfloat16, in_pairs=True, is_scaled=True)


def latent_call(
    batch: int,
    query_len: int,
    heads: int,
    sizes: tuple[int, int],
    dtype: torch.dtype,
    *,
    room: int = 8256,
    in_pairs: bool = False,
    is_scaled: bool = False,
) -> None:
    rows = heads * sum(sizes)
    weight = torch.empty(rows, 512, dtype=torch.float8_e4m3fn if is_scaled else dtype)
    scales = (torch.ones(rows // 128, 4), torch.zeros(rows, dtype=torch.int32))
    weights = LatentWeights(weight, *sizes, *(scales if is_scaled else ()))
    query = torch.zeros(batch, query_len, heads, sizes[0] + 64, dtype=dtype).transpose(1, 2)
    latent = torch.zeros(batch, 1, query_len, 576, dtype=dtype)
    slots = torch.zeros(batch, dtype=torch.long)
    positions = slots[:, None] + torch.arange(query_len)
    cache = torch.zeros(16, 1, 576, dtype=dtype)
    table = torch.zeros(batch, query_len, 64, dtype=dtype)
    pairs = PairRotary(table, table) if in_pairs else None
    new = LatentInput(query, latent, weights, 0.1, None, pairs)
    triton_latent.decode(cache, new, slots, positions, room)


def merge_kernels() -> None:
    """Of one request's splits, whose wide rows want more registers than a warp has."""
    positions = torch.zeros(1, 4, dtype=torch.long)
    for value_dim in (64, 512):
        parts = triton_splits.Parts.empty(1, 32, 16, value_dim, torch.device("cpu"))
        out = torch.zeros(1, 4, 4, value_dim, dtype=torch.bfloat16)
        heads = {"KV_HEADS": 1, "GROUP": 4, "QUERY_LEN": 4, "WINDOW": 0, "BLOCK_N": 32}
        sizes = {"VALUE_DIM": value_dim, "BLOCK_DV": value_dim}
        triton_splits.merge(parts, positions, out, heads | sizes)


def recurrent_launches() -> Iterator[tuple[Any, ...]]:
    for dtype, query_len, sizes in (
        (torch.bfloat16, 4, (16, 2, 128, 128)),
        (torch.bfloat16, 1, (16, 1, 128, 128)),
        (torch.float32, 1, (2, 1, 96, 8)),
    ):
        case = Case(*sizes, query_len, query_len)
        cache = random_cache(case, dtype, "cpu")
        positions = torch.zeros(case.batch_size + 2, query_len, dtype=torch.long)
        states = DecodeStates(cache, positions[:, 0].contiguous(), positions)
        rows = random_rows(case, random_net(case, dtype, "cpu"), dtype, "cpu")
        yield cache.layers[0], rows, states.slots, states.positions, states.num_pending


def recurrent_kernels() -> None:
    """Triton's of a size that Gluon's has not."""
    *published, other = recurrent_launches()
    for arguments in published:
        gluon_recurrent.delta_rule(recurrent_launch.recurrent_launch(*arguments))
    triton_recurrent.delta_rule(*other)


def exchange_kernels() -> None:
    for num_ranks, dtype in ((2, torch.float16), (8, torch.float32)):
        addresses = torch.zeros(num_ranks, dtype=torch.int64)
        inboxes = triton_exchange.Inboxes(addresses, torch.zeros(4, dtype=torch.int32), 1)
        for rows in (4, 70):
            inboxes.add_up(torch.zeros(rows, 4096, dtype=dtype))
    # Its way is the same for every number of ranks, and for numbers of one kind.
    for rows in (4, 70_000):
        inboxes.gather(torch.zeros(rows, 2))


def winner_kernels() -> None:
    chosen = torch.zeros(4, 4, dtype=torch.long)
    for dtype in (torch.float32, torch.bfloat16):
        triton_winner.pack(torch.zeros(4, 4, 1000, dtype=dtype), chosen, 1000)
    for num_ranks in (2, 8):
        triton_winner.winner(torch.zeros(num_ranks, 4, 4, 2))


def draw_kernel() -> None:
    """Of DeepSeek-V2's shape, neither of whose numbers is a power of two."""
    shape = ExpertShape(160, 6)
    positions = torch.zeros(64, 4, dtype=torch.long)
    out = torch.zeros(3, 256, shape.top_k, dtype=torch.long)
    triton_draw.draw(positions[:, 0].contiguous(), positions, torch.arange(3), 7, shape, out)


def expert_kernels() -> None:
    """Of Qwen3-30B-A3B's shape, with tokens listed by their experts. Of few tokens there are those
    with scales and with a shared expert."""
    experts = Experts(
        torch.empty(128, 1536, 2048, dtype=torch.bfloat16),
        torch.empty(128, 2048, 768, dtype=torch.bfloat16),
    )
    chosen = torch.zeros(64, 8, dtype=torch.long)
    weights = torch.zeros(64, 8, dtype=torch.bfloat16)
    padding = Padding(torch.zeros(64, dtype=torch.long), 64, 1)
    x = torch.zeros(64, 2048, dtype=torch.bfloat16)
    triton_experts.apply(experts, x, Choice(chosen, weights, padding), x)


def scaled_expert_kernels() -> None:
    """Of GLM-4.5-Air's shape, as two ranks share it: its last tile of columns is half empty."""
    for num_tokens in (1, 64):
        apply_experts(scaled_experts(704, 11), num_tokens)


def scaled_experts(size: int, blocks: int) -> Experts:
    gate_up = torch.empty(128, 2 * size, 4096, dtype=torch.float8_e4m3fn)
    down = torch.empty(128, 4096, size, dtype=torch.float8_e4m3fn)
    rows = torch.zeros(4096, dtype=torch.int32)
    of_both = ExpertScales(torch.ones(128, 22, 32), rows[: 2 * size])
    return Experts(gate_up, down, of_both, ExpertScales(torch.ones(128, 32, blocks), rows))


def apply_experts(experts: Experts, num_tokens: int) -> None:
    chosen = torch.zeros(num_tokens, 8, dtype=torch.long)
    weights = torch.zeros(num_tokens, 8, dtype=torch.bfloat16)
    x = torch.zeros(num_tokens, 4096, dtype=torch.bfloat16)
    triton_experts.apply(experts, x, Choice(chosen, weights), x)


def shared_expert_kernels() -> None:
    """Of Qwen3.5-35B-A3B's shape with a gate, of ERNIE-4.5-21B's in two pieces, and of
    GLM-4.7-Flash's in FP8."""
    for num_experts, top_k, hidden, size, pieces, has_gate, dtype, num_tokens in (
        (256, 8, 2048, 512, 1, True, torch.bfloat16, 1),
        (64, 6, 2560, 1536, 2, False, torch.bfloat16, 64),
        (64, 4, 2048, 1536, 1, True, torch.float8_e4m3fn, 64),
    ):
        is_scaled = dtype == torch.float8_e4m3fn
        gate = torch.zeros(1, hidden, dtype=torch.bfloat16) if has_gate else None
        sizes = (2 * size, hidden), (hidden, size)
        whole = (2 * pieces * size, hidden), (hidden, pieces * size)
        weights = [torch.empty(num_experts, *each, dtype=dtype) for each in sizes]
        scales = [block_scales(num_experts, *each) if is_scaled else None for each in sizes]
        its = [torch.empty(each, dtype=dtype) for each in whole]
        of_its = [block_scales(*each) if is_scaled else None for each in whole]
        shared = SharedExpert(*its, gate, *of_its)
        experts = Experts(*weights, *scales, shared=shared)
        chosen = torch.zeros(num_tokens, top_k, dtype=torch.long)
        of_chosen = torch.zeros(num_tokens, top_k, dtype=torch.bfloat16)
        padding = Padding(torch.zeros(num_tokens, dtype=torch.long), 64, 1)
        x = torch.zeros(num_tokens, hidden, dtype=torch.bfloat16)
        triton_experts.apply(experts, x, Choice(chosen, of_chosen, padding), x)


def block_scales(*shape: int) -> ExpertScales:
    *experts, rows, columns = shape
    scale = torch.ones(*experts, rows // 128, columns // 128)
    return ExpertScales(scale, torch.zeros(rows, dtype=torch.int32))


def route_kernels() -> None:
    x = torch.zeros(64, 2048, dtype=torch.bfloat16)
    plain = RouterRule(8, renormalises=True)
    triton_route.route(x[:1], x.new_zeros(128, 2048), None, plain)
    rule = RouterRule(8, is_sigmoid=True, wide_logits=True, num_groups=8, top_groups=4)
    triton_route.route(x[:4], x.new_zeros(256, 2048), torch.zeros(256), rule)
    # Float32 weights of bfloat16 rows, as ERNIE has them.
    triton_route.route(x, torch.zeros(64, 2048), None, RouterRule(6, wide_logits=True))


def window_kernels() -> None:
    """Of three modules at k = 3."""
    for dtype, batch in ((torch.bfloat16, 1), (torch.bfloat16, 64), (torch.float32, 8)):
        state = DecodeState(
            spec_tokens=3,
            max_batch_size=batch,
            scratch_slot=batch,
            hidden_size=4096,
            dtype=dtype,
            device=torch.device("cpu"),
            num_modules=3,
        )
        for step in (2, 3):
            triton_window.module_window(state.full, step)
        triton_block.draft_block(state.full, torch.zeros(1, dtype=torch.long), 1024)


def read_kernel() -> None:
    triton_read.read(torch.zeros(1 << 20, dtype=torch.int32))


@pytest.mark.parametrize(
    ("call", "least", "most_spilling"),
    [
        (rows_kernels, 7, 0),
        (linear_kernels, 9, 0),
        (scaled_kernels, 3, 0),
        # Of listed tokens a few words, among the pointers to 16 gathered rows. It is the fastest.
        (scaled_expert_kernels, 6, 2),
        # Float32, whose tiles fill twice the registers.
        # Of 128 rows, a few words.
        (w8a8_kernels, 14, 4),
        (attention_kernels, 7, 1),
        (fp8_kv_kernels, 2, 0),
        (merge_kernels, 2, 0),
        # Of verifies of few rows, a little outside their loops, so that two programs fit.
        (recurrent_kernels, 3, 2),
        # Of one shape's queries that are rotated as they are loaded, a little.
        (latent_kernels, 11, 1),
        (hopper_latent_kernels, 10, 0),
        (scaled_latent_kernels, 3, 1),
        # Of eight ranks, a little.
        (exchange_kernels, 6, 1),
        (winner_kernels, 4, 0),
        (draw_kernel, 1, 0),
        (expert_kernels, 4, 0),
        (shared_expert_kernels, 10, 0),
        (route_kernels, 3, 0),
        (window_kernels, 5, 0),
        (read_kernel, 1, 0),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_for_hopper(
    compiled: list[Any], tmp_path: Path, call: Callable[[], None], least: int, most_spilling: int
) -> None:
    """What spills goes through memory. PTX does not tell: registers are given out after it."""
    call()
    assert len(compiled) >= least
    # Calls of another room are of the same kernels.
    kernels = {kernel.hash: kernel for kernel in compiled}.values()
    stacks = [stack_bytes(kernel.asm["cubin"], tmp_path) for kernel in kernels]
    assert sum(stack > 0 for stack in stacks) <= most_spilling, stacks
    for kernel in kernels:
        # The one that measures the bandwidth is launched alone.
        if kernel.src.fn.module != triton_read.__name__:
            check_wait(kernel)


def test_fp8_values_are_not_gathered_byte_by_byte(compiled: list[Any]) -> None:
    """They are converted two at a time, and transposed as numbers of 16 bits. Conversions to
    bfloat16 would be slow."""
    fp8_kv_kernels()
    low_precision = [each.asm["ptx"] for each in compiled if "{low, high}" in each.asm["ptx"]]
    assert len(low_precision) == 2
    for ptx in low_precision:
        assert not re.search(r"ld\.shared\S*\.[bus]8", ptx)
        assert "ldmatrix" in ptx and ".trans" in ptx
        assert "cvt.rn.bf16.f16" not in ptx and "cvt.bf16.f16" not in ptx


def test_float32_routers_go_to_tensor_cores_in_parts(compiled: list[Any]) -> None:
    route_kernels()
    for kernel in compiled:
        # The order is theirs: no product of the router is left to float32 arithmetic.
        assert re.search(r"mma\S*\.f32\.bf16\.bf16", kernel.asm["ptx"])
        # A float32 weight is cut into its parts by integer instructions. Conversions are few, and
        # at the kernel's end.
        assert kernel.asm["ptx"].count("cvt.rn.bf16") <= 8


def test_quantised_rows_go_to_tensor_cores_as_fp8(compiled: list[Any]) -> None:
    """And a sum over the columns of one scale alone: it is a float32 sum of such."""
    w8a8_kernels()
    products = [each.asm["ptx"] for each in compiled if "mma" in each.asm["ptx"]]
    assert len(products) > 6
    of_fp8 = [ptx for ptx in products if re.search(r"mma\S*\.e4m3\.e4m3", ptx)]
    # Columns of 16 fill no instruction of FP8, and take float16's.
    assert len(of_fp8) == len(products) - 1


def stack_bytes(cubin: bytes, folder: Path) -> int:
    """A thread's memory for what its registers do not hold."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.check_output([tool, "--dump-resource-usage", file], text=True)
    (stack,) = re.findall(r"STACK:(\d+)", usage)
    return int(stack)


def check_wait(kernel: Any) -> None:
    """Launched early, it must wait before it touches what the one ahead writes."""
    before, wait, _ = kernel.asm["ptx"].partition("griddepcontrol.wait")
    assert wait and "st.global" not in before
    # What kernels before the one ahead have written is read past L1.
    early = re.findall(r"(?:ld\.global|cp\.async\.c[ag])\S*", before)
    assert all(each.startswith(("ld.global.cg", "cp.async.cg")) for each in early)
    # Cached latents and recurrent state, of an earlier forward.
    of_earlier = {gluon_latent.__name__, gluon_recurrent.__name__}
    assert "cp.async" not in before or kernel.src.fn.module in of_earlier
    assert kernel.asm["ptx"].count("griddepcontrol.launch_dependents") == 1
