"""A mixture's experts at few tokens: our kernels beside transformers' own, against their bytes.

    python scripts/trials/bench_experts.py --output results/FOLDER/experts.md
    python scripts/trials/bench_experts.py --shapes qwen3-30b-a3b --tokens 1,8 --routing skewed

A layer is route, gate and up, activation, down, and the sum with the residual. Every call takes
another choice of experts, captured in one CUDA graph, so that no cache holds what the next reads.
Balanced routing draws experts evenly. Skewed routing draws half of them among an eighth. vLLM's
``fused_moe`` is measured too where it is installed. Needs a CUDA device.
"""

import argparse
from collections.abc import Callable, Iterator
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
from cgbench.kernels.moe import triton_experts, triton_route
from cgbench.kernels.moe.expert_products import Choice, Experts
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds


class Shape(NamedTuple):
    """One mixture, without its shared expert."""

    num_experts: int
    top_k: int
    hidden: int
    intermediate: int


SHAPES = {
    "qwen3-30b-a3b": Shape(128, 8, 2048, 768),
    "qwen3.5-35b-a3b": Shape(256, 8, 2048, 512),
    "ernie-4.5-21b-a3b": Shape(64, 6, 2560, 1536),
    "glm-4.5-air": Shape(128, 8, 4096, 1408),
    "glm-4.5-air-half": Shape(128, 8, 4096, 704),
    "deepseek-v3": Shape(256, 8, 7168, 2048),
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

    @property
    def bytes_read(self) -> float:
        """Of the chosen experts' weights, the mean of a call."""
        counts = [len(choice.chosen.unique()) for choice in self.choices]
        return sum(counts) / len(counts) * 6 * self.shape.hidden * self.shape.intermediate


def make_experts(shape: Shape) -> Experts:
    draw = partial(torch.empty, device="cuda", dtype=torch.bfloat16)
    count, _, hidden, rows = shape
    return Experts(
        draw(count, 2 * rows, hidden).normal_(std=0.02), draw(count, hidden, rows).normal_(std=0.02)
    )


def make_layer(experts: Experts, shape: Shape, num_tokens: int, routing: str) -> Layer:
    chosen = [ROUTINGS[routing](shape, num_tokens).contiguous() for _ in range(CALLS)]
    x = torch.randn(num_tokens, shape.hidden, device="cuda", dtype=torch.bfloat16)
    weights = torch.rand(num_tokens, shape.top_k, device="cuda", dtype=torch.bfloat16)
    return Layer(shape, experts, x, [Choice(each, weights) for each in chosen])


Way = Callable[[Choice], Tensor]


def ways(layer: Layer) -> Iterator[tuple[str, Way]]:
    """Ways to apply a layer's experts, by name."""
    experts, x, shape = layer.experts, layer.x, layer.shape
    rule = RouterRule(top_k=shape.top_k, renormalises=True)
    router = torch.randn(shape.num_experts, shape.hidden, device="cuda", dtype=torch.bfloat16)

    def routed(choice: Choice) -> Tensor:
        triton_route.route(x, router, None, rule)
        return triton_experts.apply(experts, x, choice, x)

    yield "cgbench", lambda choice: triton_experts.apply(experts, x, choice, x)
    yield "cgbench with route", routed
    module = as_module(experts)
    yield "grouped_mm", lambda c: x + grouped_mm_experts_forward(module, x, c.chosen, c.weights)
    if len(x) <= SMALL_BATCH:
        yield "batched_mm", lambda c: x + batched_mm_experts_forward(module, x, c.chosen, c.weights)
    if (theirs := vllm_way(layer)) is not None:
        yield "vLLM fused_moe", theirs


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


def vllm_way(layer: Layer) -> Way | None:
    """vLLM's own, without the sum with the residual."""
    try:
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts
    except ImportError:
        return None
    gate_up, down = layer.experts.gate_up, layer.experts.down

    def apply(choice: Choice) -> Tensor:
        chosen = choice.chosen.to(torch.int32)
        out: Tensor = fused_experts(layer.x, gate_up, down, choice.weights.float(), chosen)
        return out

    return apply


@torch.inference_mode()
def seconds(way: Way, choices: list[Choice]) -> float:
    """Seconds of one layer."""
    return graph_seconds(lambda: [way(choice) for choice in choices], REPLAYS) / len(choices)


def lines(name: str, layer: Layer, bandwidth: float) -> Iterator[str]:
    """Markdown, a line a way."""
    least = layer.bytes_read / bandwidth
    for way, apply in ways(layer):
        try:
            taken = seconds(apply, layer.choices)
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
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    bandwidth, facts = read_bandwidth(torch.device("cuda")), environment()
    text = [
        f"Experts of one layer in bfloat16 on {facts['gpu']}, torch {facts['torch']}, "
        f"{arguments.routing} routing. Read bandwidth {bandwidth / 1e12:.2f} TB/s, measured in "
        "this run. The share is of the chosen experts' bytes alone.",
        "",
        "| shape | tokens | way | us | of its bytes [us] | share |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name in arguments.shapes:
        experts = make_experts(SHAPES[name])
        for num_tokens in map(int, arguments.tokens.split(",")):
            layer = make_layer(experts, SHAPES[name], num_tokens, arguments.routing)
            for line in lines(name, layer, bandwidth):
                print(line, flush=True)
                text.append(line)
        del experts, layer
        torch.cuda.empty_cache()
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
