"""A mixture's experts at few tokens: our kernels beside transformers' own, against their bytes.

    python scripts/trials/bench_experts.py --output results/FOLDER/experts.md
    python scripts/trials/bench_experts.py --shapes qwen3-30b-a3b --tokens 1,8 --routing skewed
    python scripts/trials/bench_experts.py --shared --tokens 1,4,8,16,32,64,128,256,512 \
        --output results/FOLDER/shared-experts.md

A layer is route, gate and up, activation, down, and the sum with the residual. Every call takes
another choice of experts, captured in one CUDA graph, so that no cache holds what the next reads.
Balanced routing draws experts evenly. Skewed routing draws half of them among an eighth. vLLM's
``fused_moe`` is measured too where it is installed. Needs a CUDA device.

With --shared a layer has its shared expert, and route. The ways are the shared expert inside the
experts' launches, and by products of its own. Each call has another shared expert, because one
alone would stay in L2.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.integrations.moe import (
    batched_mm_experts_forward,
    grouped_mm_experts_forward,
)

from cgbench.errors import CgbenchError
from cgbench.floor.device_limits import read_bandwidth
from cgbench.kernels.linear import gated_linear, linear, linear_add
from cgbench.kernels.moe import triton_experts, triton_route
from cgbench.kernels.moe.expert_plan import Plan, plan_of
from cgbench.kernels.moe.expert_products import Choice, Experts, SharedExpert
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell


class Shape(NamedTuple):
    """One mixture. Its shared expert has ``pieces`` times the size of an expert, and a gate or
    none."""

    num_experts: int
    top_k: int
    hidden: int
    intermediate: int
    pieces: int = 0
    has_gate: bool = False

    @property
    def expert_bytes(self) -> int:
        """Of one expert's weights."""
        return 6 * self.hidden * self.intermediate


SHAPES = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "qwen3.5-35b-a3b": Shape(256, 8, 2048, 512, pieces=1, has_gate=True),
    "ernie-4.5-21b-a3b": Shape(64, 6, 2560, 1536, pieces=2),
    "glm-4.7-flash": Shape(64, 4, 2048, 1536, pieces=1),
    "glm-4.5-air": Shape(128, 8, 4096, 1408, pieces=1),
    "glm-4.5-air-half": Shape(128, 8, 4096, 704, pieces=1),
    "deepseek-v3": Shape(256, 8, 7168, 2048, pieces=1),
}
CALLS, REPLAYS = 12, 5
SMALL_BATCH = 16
"""Tokens up to which batched_mm, that copies each pair's weights, is worth a try."""


def balanced(shape: Shape, num_tokens: int, device: str = "cuda") -> Tensor:
    """Distinct experts of each token, evenly."""
    return torch.rand(num_tokens, shape.num_experts, device=device).argsort(-1)[:, : shape.top_k]


def skewed(shape: Shape, num_tokens: int, device: str = "cuda") -> Tensor:
    """Half of a token's experts among the first eighth of all."""
    half, few = shape.top_k // 2, shape.num_experts // 8
    scores = torch.rand(num_tokens, shape.num_experts, device=device)
    among_few = scores[:, :few].argsort(-1)[:, :half]
    others = few + scores[:, few:].argsort(-1)[:, : shape.top_k - half]
    return torch.cat((among_few, others), -1)


ROUTINGS = {"balanced": balanced, "skewed": skewed}


class Layer(NamedTuple):
    """What one shape's ways are tried on."""

    shape: Shape
    experts: Experts
    x: Tensor
    choices: list[Choice]
    shared: list[SharedExpert]
    """One a call, or none."""

    @property
    def bytes_read(self) -> float:
        """Of the chosen experts' weights and the shared one's, the mean of a call."""
        counts = [len(choice.chosen.unique()) for choice in self.choices]
        pieces = self.shape.pieces if self.shared else 0
        return (sum(counts) / len(counts) + pieces) * self.shape.expert_bytes


def make_experts(shape: Shape) -> Experts:
    draw = partial(torch.empty, device="cuda", dtype=torch.bfloat16)
    count, hidden, rows = shape.num_experts, shape.hidden, shape.intermediate
    return Experts(
        draw(count, 2 * rows, hidden).normal_(std=0.02), draw(count, hidden, rows).normal_(std=0.02)
    )


def make_shared(
    shape: Shape, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> SharedExpert:
    draw = partial(torch.empty, device=device, dtype=dtype)
    size = shape.pieces * shape.intermediate
    gate_up = draw(2 * size, shape.hidden).normal_(std=0.02)
    down = draw(shape.hidden, size).normal_(std=0.02)
    gate = draw(1, shape.hidden).normal_(std=0.02) if shape.has_gate else None
    return SharedExpert(gate_up, down, gate)


def make_layer(
    experts: Experts, shape: Shape, num_tokens: int, routing: str, shared: list[SharedExpert]
) -> Layer:
    chosen = [ROUTINGS[routing](shape, num_tokens).contiguous() for _ in range(CALLS)]
    x = torch.randn(num_tokens, shape.hidden, device="cuda", dtype=torch.bfloat16)
    weights = torch.rand(num_tokens, shape.top_k, device="cuda", dtype=torch.bfloat16)
    return Layer(shape, experts, x, [Choice(each, weights) for each in chosen], shared)


Way = Callable[[Choice], Tensor]
SharedWay = Callable[[Choice, SharedExpert], Tensor]


def ways(layer: Layer) -> Iterator[tuple[str, Way]]:
    """Ways to apply a layer's experts, by name."""
    experts, x, shape = layer.experts, layer.x, layer.shape
    rule = RouterRule(top_k=shape.top_k, renormalises=True)
    router = torch.randn(shape.num_experts, shape.hidden, device="cuda", dtype=torch.bfloat16)

    plan = plan_of(experts, len(x), shape.top_k)
    late = plan._replace(asks_early=False)

    def routed(choice: Choice, plan: Plan = plan) -> Tensor:
        triton_route.route(x, router, None, rule)
        return triton_experts.apply(experts, x, choice, x, plan)

    yield "cgbench", lambda choice: triton_experts.apply(experts, x, choice, x, plan)
    yield "cgbench, asking late", lambda c: triton_experts.apply(experts, x, c, x, late)
    yield "cgbench with route", routed
    yield "cgbench with route, asking late", lambda choice: routed(choice, late)
    module = as_module(experts)
    yield "grouped_mm", lambda c: x + grouped_mm_experts_forward(module, x, c.chosen, c.weights)
    if len(x) <= SMALL_BATCH:
        yield "batched_mm", lambda c: x + batched_mm_experts_forward(module, x, c.chosen, c.weights)
    yield from vllm_ways(layer, router)


def shared_ways(layer: Layer) -> Iterator[tuple[str, SharedWay]]:
    """Ways to run a whole layer with its shared expert, by name."""
    experts, x, shape = layer.experts, layer.x, layer.shape
    rule = RouterRule(top_k=shape.top_k, renormalises=True)
    router = torch.randn(shape.num_experts, shape.hidden, device=x.device, dtype=x.dtype)
    plan = plan_of(experts, *layer.choices[0].chosen.shape)

    sum_of_gated = torch.compile(weighted_sum)

    def inside(choice: Choice, shared: SharedExpert) -> Tensor:
        triton_route.route(x, router, None, rule)
        its = plan._replace(takes_shared=True)
        return triton_experts.apply(replace(experts, shared=shared), x, choice, x, its)

    def apart(choice: Choice, shared: SharedExpert) -> Tensor:
        triton_route.route(x, router, None, rule)
        activated = gated_linear(x, shared.gate_up, None)
        if shared.gate is None:
            added = linear_add(activated, shared.down, None, x)
        else:
            part = linear(activated, shared.down, None)
            added = sum_of_gated(x, linear(x, shared.gate, None), part)
        return triton_experts.apply(experts, x, choice, added, plan)

    yield "shared inside", inside
    yield "shared apart", apart


def weighted_sum(residual: Tensor, logit: Tensor, part: Tensor) -> Tensor:
    """What stands behind a shared expert with a gate, as a compiled layer has it."""
    return residual + logit.sigmoid() * part


def timed_ways(layer: Layer) -> Iterator[tuple[str, Callable[[], object]]]:
    """All calls of each way, by name."""
    if layer.shared:
        pairs = list(zip(layer.choices, layer.shared, strict=True))
        for name, shared_way in shared_ways(layer):
            yield name, partial(each_pair, shared_way, pairs)
    else:
        for name, way in ways(layer):
            yield name, partial(each_choice, way, layer.choices)


def each_pair(way: SharedWay, pairs: list[tuple[Choice, SharedExpert]]) -> list[Tensor]:
    return [way(*pair) for pair in pairs]


def each_choice(way: Way, choices: list[Choice]) -> list[Tensor]:
    return [way(choice) for choice in choices]


def as_module(experts: Experts) -> SimpleNamespace:
    """What transformers' functions take for a module of experts."""
    silu = ACT2FN["silu"]

    def apply_gate(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated: Tensor = silu(gate) * up
        return activated

    return SimpleNamespace(
        gate_up_proj=experts.gate_up,
        down_proj=experts.down,
        num_experts=experts.num_experts,
        has_gate=True,
        has_bias=False,
        has_post_expert_norm=False,
        is_transposed=False,
        is_concatenated=True,
        act_fn=silu,
        _apply_gate=apply_gate,
        _is_expert_parallel=False,
    )


def vllm_ways(layer: Layer, router: Tensor) -> Iterator[tuple[str, Way]]:
    """vLLM's own without the sum with the residual, alone and after its route, if it is installed.

    It takes float32 weights and int32 experts, which stand ready here because its router writes
    them.
    """
    try:
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts
        from vllm.model_executor.layers.fused_moe.router.fused_topk_router import fused_topk
    except ImportError:
        return
    x, top_k = layer.x, layer.shape.top_k
    gate_up, down = layer.experts.gate_up, layer.experts.down
    ready = {
        id(choice): (choice.weights.float(), choice.chosen.to(torch.int32))
        for choice in layer.choices
    }

    def apply(choice: Choice) -> Tensor:
        out: Tensor = fused_experts(x, gate_up, down, *ready[id(choice)])
        return out

    def routed(choice: Choice) -> Tensor:
        fused_topk(x, torch.nn.functional.linear(x, router), top_k, renormalize=True)
        return apply(choice)

    yield "vLLM fused_moe", apply
    yield "vLLM fused_moe with route", routed


@torch.inference_mode()
def seconds(calls: Callable[[], object]) -> float:
    """Seconds of one layer."""
    return graph_seconds(calls, REPLAYS) / CALLS


def lines(name: str, layer: Layer, bandwidth: float) -> Iterator[str]:
    """Markdown, a line a way."""
    least = layer.bytes_read / bandwidth
    for way, calls in timed_ways(layer):
        try:
            taken = seconds(calls)
        except (RuntimeError, CgbenchError) as error:
            reason = str(error).partition("\n")[0]
            yield f"| {name} | {len(layer.x)} | {way} | | | {reason[:60]} |"
            continue
        cells = f"{name} | {len(layer.x)} | {way} | {taken * 1e6:.1f} | {least * 1e6:.1f}"
        yield f"| {cells} | {least / taken:.0%} |"


def named_shapes(text: str) -> list[str]:
    """The names in a list with commas."""
    names = text.split(",")
    for name in names:
        if name not in SHAPES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SHAPES)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", type=named_shapes, default=[*SHAPES], help=f"of {', '.join(SHAPES)}"
    )
    parser.add_argument("--tokens", default="1,2,4,8,16,32,64,128,256,512,1024")
    parser.add_argument("--routing", choices=ROUTINGS, default="balanced")
    parser.add_argument(
        "--shared", action="store_true", help="a layer with its shared expert, both ways"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Experts of one layer in bfloat16 on {facts['gpu']}, torch {facts['torch']}, "
        f"{arguments.routing} routing. Read bandwidth {bandwidth / 1e12:.2f} TB/s, measured in "
        "this run. The share is of the experts' bytes alone.",
        "",
        "| shape | tokens | way | us | of its bytes [us] | share |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name in arguments.shapes:
        shape = SHAPES[name]
        if arguments.shared and not shape.pieces:
            continue
        experts = make_experts(shape)
        shared = [make_shared(shape) for _ in range(CALLS)] if arguments.shared else []
        for num_tokens in map(int, arguments.tokens.split(",")):
            layer = make_layer(experts, shape, num_tokens, arguments.routing, shared)
            tell(lines(name, layer, bandwidth), text, arguments.output)
        del experts, layer, shared
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
