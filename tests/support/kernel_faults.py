"""Faults to plant in the experts' kernels, where lists and counts are: the engine's own faults are
in ``mutations``. Each must be seen by the kernels' test against their definition.

A list needs no stable sort. A pair carries its place, so that a token's sum runs in the order of
its slots whatever the order of the list.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

Fault = Callable[[], object]
FAULTS: dict[str, Fault] = {}
"""What starts each, until ``mock.patch.stopall``."""


def fault(plant: Fault) -> Fault:
    """Enter a fault in the table."""
    FAULTS[plant.__name__] = plant
    return plant


def _change_lists(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Have ``change`` make other pairs ``[E, T]`` and counts ``[E]`` of every list."""
    from cgbench.kernels.moe import triton_experts

    real = triton_experts._listed

    def listed(call: triton_experts._Call) -> triton_experts._Lists:
        pairs, counts = real(call)
        is_listed = torch.arange(pairs.shape[1]) < counts[:, None]
        # Past a list's end is whatever the memory held: here, the first pair.
        return triton_experts._Lists(*change(pairs * is_listed, counts))

    mock.patch.object(triton_experts, "_listed", listed).start()


@fault
def list_off_by_one() -> None:
    """Every expert is given the pair after its own."""
    _change_lists(lambda pairs, counts: ((pairs - 1).clamp(min=0), counts))


@fault
def list_misses_a_pair() -> None:
    """Each expert's first pair is not in its list."""
    _change_lists(lambda pairs, counts: (pairs.roll(-1, 1).contiguous(), (counts - 1).clamp(min=0)))


@fault
def count_one_too_low() -> None:
    """Each expert leaves its last pair."""
    _change_lists(lambda pairs, counts: (pairs, (counts - 1).clamp(min=0)))


@fault
def count_one_too_high() -> None:
    """Each expert takes a pair that is another's."""
    _change_lists(lambda pairs, counts: (pairs, (counts + 1).clamp(max=pairs.shape[1])))


@fault
def stale_list() -> None:
    """The lists of the first routing of a size are kept for the next ones."""
    kept: dict[torch.Size, tuple[Tensor, Tensor]] = {}
    _change_lists(lambda pairs, counts: kept.setdefault(pairs.shape, (pairs, counts)))


@fault
def stale_count() -> None:
    """The counts alone are kept."""
    kept: dict[torch.Size, Tensor] = {}
    _change_lists(lambda pairs, counts: (pairs, kept.setdefault(pairs.shape, counts)))


@fault
def padded_row_reads_an_expert() -> None:
    """No slot is the scratch slot: a padded token's experts are read like any other's."""
    from cgbench.kernels.moe import triton_experts

    real = triton_experts._Call.routing.fget  # type: ignore[attr-defined]

    def routing(call: triton_experts._Call) -> tuple[Tensor, Tensor, int, int]:
        chosen, slots, _, query_len = real(call)
        return chosen, slots, -1, query_len

    mock.patch.object(triton_experts._Call, "routing", property(routing)).start()


@fault
def arrivals_left_over() -> None:
    """A launch begins with a part counted: the sum is made before the last part is there."""
    from cgbench.kernels.moe import triton_experts

    def arrivals(kernel: str, number: int, device: torch.device) -> Tensor:
        return torch.ones(number, dtype=torch.int32, device=device)

    mock.patch.object(triton_experts, "arrivals", arrivals).start()


@fault
def shared_gate_of_another_row() -> None:
    """A shared expert counts for each token as it should for the one after."""
    from cgbench.kernels.moe import triton_experts

    real = triton_experts._gate_up

    def gate_up(call: triton_experts._Call, *others: Any) -> Tensor:
        activated: Tensor = real(call, *others)
        assert call.shared_weights is not None
        call.shared_weights.copy_(call.shared_weights.roll(-1))
        return activated

    mock.patch.object(triton_experts, "_gate_up", gate_up).start()


@fault
def shared_expert_added_twice() -> None:
    """Products of its own add it to the residual, and the launches take it in too."""
    from cgbench.kernels.moe import expert_plan
    from cgbench.kernels.moe.expert_products import Experts

    mock.patch.object(expert_plan, "most_tokens_with", lambda experts: 0).start()
    mock.patch.object(Experts, "without_shared", lambda experts: experts).start()


@fault
def shared_expert_misses_a_piece() -> None:
    """Sums run over one piece of it too few."""
    from cgbench.kernels.moe import triton_experts

    real = triton_experts._Call.of_sum.fget  # type: ignore[attr-defined]

    def of_sum(call: triton_experts._Call) -> dict[str, int]:
        keywords: dict[str, int] = real(call)
        return keywords | {"PIECES": keywords["PIECES"] - 1}

    mock.patch.object(triton_experts._Call, "of_sum", property(of_sum)).start()


def is_seen(name: str, error: Callable[[], float], *, below: float) -> bool:
    """Whether ``error`` is not ``below`` that limit with the fault called ``name`` planted."""
    FAULTS[name]()
    try:
        return not error() < below
    finally:
        mock.patch.stopall()
