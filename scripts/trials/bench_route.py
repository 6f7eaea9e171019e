"""A mixture's router at few tokens: our kernel by its tilings, beside torch's product and topk.

    python scripts/trials/bench_route.py --output results/FOLDER/route.md
    python scripts/trials/bench_route.py --shapes glm-4.7-flash --tokens 64,256 --sweep

Every call reads another router's weights, so that no cache holds them. With --sweep every tiling of
a grid is timed, and the table has the rule's and the best three. Needs a CUDA device.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from cgbench.kernels.moe import triton_route
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.kernels.moe.triton_route import RouteTiling
from cgbench.rundir.environment import environment
from graph_timing import graph_seconds, tell


class Router(NamedTuple):
    """One router. ``wide`` weights are float32."""

    experts: int
    hidden: int
    rule: RouterRule
    wide: bool = False


SHAPES = {
    "qwen3-30b-a3b": Router(128, 2048, RouterRule(top_k=8, renormalises=True)),
    "qwen3.5-35b-a3b": Router(256, 2048, RouterRule(top_k=8, renormalises=True)),
    "ernie-4.5-21b-a3b": Router(64, 2560, RouterRule(top_k=6, renormalises=True), wide=True),
    "glm-4.7-flash": Router(
        64, 2048, RouterRule(top_k=4, renormalises=True, is_sigmoid=True), wide=True
    ),
    "deepseek-v3": Router(
        256,
        7168,
        RouterRule(top_k=8, renormalises=True, is_sigmoid=True, num_groups=8, top_groups=4),
        wide=True,
    ),
}
REPLAYS = 5
COLD_BYTES = 120e6
"""Of different routers, so that L2 holds none of them at its next use."""
GRID = [
    RouteTiling(16, experts, 128, splits, warps, 3)
    for experts, warps, splits in itertools.product((16, 64), (4, 8), (1, 2, 4, 8))
]


def tilings(router: Router, num_tokens: int, sweep: bool) -> Iterator[tuple[str, RouteTiling]]:
    """The rule's tiling, and with ``sweep`` those of the grid that fit."""
    rule = triton_route.route_tiling(router.experts)
    yield "its rule", rule
    if not sweep:
        return
    for each in GRID:
        too_tall = each.tokens > 16 and each.tokens >= 2 * num_tokens
        stage = each.columns * (each.experts * (4 if router.wide else 2) + each.tokens * 2)
        if each != rule and not too_tall and stage * each.stages < 200_000:
            yield "", each


def by_torch(x: Tensor, weight: Tensor, rule: RouterRule) -> object:
    """The product and ``topk`` alone, without scores or groups: what a router cannot do without."""
    return (x.to(weight.dtype) @ weight.t()).topk(rule.top_k)


def seconds(call: Callable[[Tensor], object], weights: list[Tensor]) -> float:
    """Seconds of one route."""
    return graph_seconds(lambda: [call(weight) for weight in weights], REPLAYS) / len(weights)


def lines(name: str, router: Router, num_tokens: int, sweep: bool) -> Iterator[str]:
    """Markdown, a line a way."""
    kind = torch.float32 if router.wide else torch.bfloat16
    x = torch.randn(num_tokens, router.hidden, device="cuda", dtype=torch.bfloat16)
    size = router.experts, router.hidden
    count = math.ceil(COLD_BYTES / (router.experts * router.hidden * kind.itemsize))
    weights = [torch.randn(size, device="cuda", dtype=kind) * 0.02 for _ in range(count)]
    rule = router.rule
    start = f"| {name} | {num_tokens} |"
    taken = seconds(lambda weight: by_torch(x, weight, rule), weights)
    yield f"{start} torch, product and topk | {taken * 1e6:.1f} |"
    one = replace(rule, top_k=1)
    taken = seconds(lambda weight: triton_route.route(x, weight, None, one), weights)
    yield f"{start} its rule, one expert a token | {taken * 1e6:.1f} |"
    timed = []
    for label, tiling in tilings(router, num_tokens, sweep):
        try:
            taken = seconds(partial(_routed, x, rule, tiling), weights)
        except (RuntimeError, ValueError, triton.CompilationError) as error:
            yield f"{start} {tuple(tiling)} | {type(error).__name__} |"
            continue
        timed.append((taken, label, tiling))
    for taken, label, tiling in sorted(timed[1:])[:6] + timed[:1]:
        yield f"{start} {tuple(tiling)} {label} | {taken * 1e6:.1f} |"


def _routed(x: Tensor, rule: RouterRule, tiling: RouteTiling, weight: Tensor) -> object:
    return triton_route.route(x, weight, None, rule, tiling)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,4,16,64,128,256,512")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device")
    facts = environment()
    text = [
        f"Routers on {facts['gpu']}, torch {facts['torch']}. Tilings: tokens, experts, columns, "
        "splits, warps, stages.",
        "",
        "| shape | tokens | way | us |",
        "|---|---:|---|---:|",
    ]
    with torch.inference_mode():
        for name in arguments.shapes.split(","):
            for num_tokens in map(int, arguments.tokens.split(",")):
                found = lines(name, SHAPES[name], num_tokens, arguments.sweep)
                tell(found, text, arguments.output)


if __name__ == "__main__":
    main()
