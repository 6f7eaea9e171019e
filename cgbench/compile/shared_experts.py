"""Find the shared expert of a mixture, if the experts' operator can compute it too.

transformers adds a shared expert in the forward of the mixture's block, under many class names. So
a block is tried. Its parts are replaced by ones that give drawn tensors. What comes out must be the
experts' sum plus the shared expert. The shared expert is tried too, because it must be an MLP that
is gated by SiLU.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgbench.kernels.moe.expert_products import ExpertScales, SharedExpert, takes_in
from cgbench.models.division.shards import ScaledSummedLinear, SummedLinear, SumOutput
from cgbench.models.projections import PackedFirst
from cgbench.models.quantised.scaled_modules import experts_in, scales_of
from cgbench.models.router_rules import MLP_PARTS, is_gated_mlp, is_router

PROBES = 5


class SharedParts(NamedTuple):
    """Shared parts are the names of a block's router, of its shared MLP, and of that one's gate."""

    router: str
    mlp: str
    gate: str | None


def shared_parts(block: nn.Module) -> SharedParts | None:
    """Return the parts of ``block``, whose experts are plain, or None if another way must run.

    The block must add its experts and its shared one, and nothing else. Weights must fit the
    experts' kernels. If ranks share the experts, they must share the shared one too, because one
    sum over the ranks is of both.
    """
    children = dict(block.named_children())
    routers = [name for name, part in children.items() if is_router(part, block.experts)]
    mlps = [name for name, part in children.items() if is_gated_mlp(part)]
    gates = [name for name, part in children.items() if _is_gate(part)]
    if len(routers) != 1 or len(mlps) != 1 or len(gates) > 1:
        return None
    parts = SharedParts(routers[0], mlps[0], gates[0] if gates else None)
    if {*children} != {"experts", *parts} - {None}:
        return None
    if not _adds_up(block, parts) or not _is_gated_by_silu(children[parts.mlp]):
        return None
    experts: Any = block.experts
    is_divided = any(isinstance(hook, SumOutput) for hook in experts._forward_hooks.values())
    is_its = isinstance(children[parts.mlp].down_proj, SummedLinear | ScaledSummedLinear)
    if is_divided != is_its or any(_has_hooks(children[each]) for each in parts[1:] if each):
        return None
    mlp: Any = children[parts.mlp]
    if (
        not _is_packed(mlp)
        or len({_is_w8a8(each) for each in (experts, mlp.gate_proj, mlp.down_proj)}) > 1
    ):
        return None
    shared = as_shared_expert(shared_tensors(block, parts))
    return parts if shared is not None and takes_in(experts_in(experts), shared) else None


SharedTensors = tuple[Tensor | None, ...]


def shared_tensors(block: nn.Module, parts: SharedParts) -> SharedTensors:
    """Return the tensors of a block's shared expert, which stay where they are.

    They are in the order of the fields of ``SharedExpert``, scales and row blocks apart.
    """
    mlp: Any = getattr(block, parts.mlp)
    gate: Any = None if parts.gate is None else getattr(block, parts.gate)
    first, down = mlp.gate_proj, mlp.down_proj
    scales = scales_of(down, "weight") or (None, None)
    weight = None if gate is None else gate.weight
    of_first = first.packed_scale, first.packed_row_blocks
    return first.packed_weight, down.weight, weight, *of_first, *scales


def as_shared_expert(tensors: SharedTensors) -> SharedExpert | None:
    """Return the shared expert of ``shared_tensors``, or None if all are None."""
    gate_up, down, gate, *scales = tensors
    if gate_up is None or down is None:
        return None
    return SharedExpert(gate_up, down, gate, as_scales(*scales[:2]), as_scales(*scales[2:]))


def as_scales(scale: Tensor | None, row_blocks: Tensor | None) -> ExpertScales | None:
    """Return scales, or None if there are none."""
    return None if scale is None or row_blocks is None else ExpertScales(scale, row_blocks)


def _is_packed(mlp: Any) -> bool:
    """Return whether gate and up are one matrix, and nothing has a bias."""
    first = mlp.gate_proj
    is_one = isinstance(first, PackedFirst) and first.others == (mlp.up_proj,)
    return is_one and first.packed_bias is None and mlp.down_proj.bias is None


def _is_w8a8(part: nn.Module) -> bool:
    """Return whether FP8 weights in ``part`` multiply quantised rows."""
    return bool(getattr(part, "is_w8a8", False))


def _is_gate(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) and part.out_features == 1 and part.bias is None


def _has_hooks(part: nn.Module) -> bool:
    return any(each._forward_hooks or each._forward_pre_hooks for each in part.modules())


class _Given(nn.Module):
    """A given module answers by a function of its input, and keeps what it was asked."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer
        self.asked: tuple[Any, ...] = ()

    def forward(self, *asked: Any) -> Any:
        self.asked = asked
        return self.answer(asked[0])

    def was_asked(self, *expected: Tensor) -> bool:
        """Return whether it was asked ``expected``, the first of them in any shape."""
        if len(self.asked) != len(expected) or not isinstance(self.asked[0], Tensor):
            return False
        first = self.asked[0].reshape(expected[0].shape)
        return all(_alike(*pair) for pair in zip((first, *self.asked[1:]), expected, strict=True))


def _always(answer: Tensor) -> _Given:
    return _Given(lambda _: answer)


def _adds_up(block: nn.Module, parts: SharedParts) -> bool:
    """Return whether ``block`` adds its experts and its shared one, each of its tokens."""
    experts: Any = block.experts
    draw = torch.Generator().manual_seed(0)
    x, routed, shared = torch.randn(3, PROBES, experts.down_proj.shape[1], generator=draw)
    weights, logits = torch.randn(PROBES, 3, generator=draw).split([2, 1], dim=-1)
    chosen = torch.arange(2 * PROBES).view(PROBES, 2)
    given = {
        parts.router: _Given(lambda _: (None, weights, chosen)),
        "experts": _always(routed),
        parts.mlp: _Given(lambda asked: shared.reshape(asked.shape)),
    }
    expected = routed + shared
    if parts.gate is not None:
        given[parts.gate] = _Given(lambda asked: logits.reshape(*asked.shape[:-1], 1))
        expected = routed + logits.sigmoid() * shared
    got = _answer(block, given, x[None])
    asked = dict.fromkeys(given, (x,)) | {"experts": (x, chosen, weights)}
    return _alike(got, expected[None]) and all(
        part.was_asked(*asked[name]) for name, part in given.items()
    )


def _is_gated_by_silu(mlp: nn.Module) -> bool:
    """Return whether ``mlp`` is ``down(silu(gate(x)) * up(x))``."""
    draw = torch.Generator().manual_seed(0)
    # Large enough that limits of the activation would show.
    x, gate, up, down = 20 * torch.randn(4, PROBES, 8, generator=draw)
    answers = dict(zip(MLP_PARTS, (gate, up, down), strict=True))
    given = {name: _always(answer) for name, answer in answers.items()}
    got = _answer(mlp, given, x)
    asked = dict(zip(MLP_PARTS, (x, x, F.silu(gate) * up), strict=True))
    return _alike(got, down) and all(part.was_asked(asked[name]) for name, part in given.items())


def _answer(module: nn.Module, parts: Mapping[str, _Given], x: Tensor) -> Any:
    """Return what ``module`` makes of ``x`` with ``parts`` in the place of its own, or None."""
    stand_in = copy(module)
    stand_in.__dict__["_modules"] = {**module._modules, **parts}
    try:
        return type(module).forward(stand_in, x)
    except Exception:  # Another module's forward may raise anything.
        return None


def _alike(got: Any, expected: Tensor) -> bool:
    return isinstance(got, Tensor) and got.shape == expected.shape and torch.allclose(got, expected)
