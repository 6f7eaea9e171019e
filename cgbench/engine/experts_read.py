"""How many experts the forwards of an iteration read, counted on the device."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cgbench.engine.iteration import BEGIN, Speculator
from cgbench.models.routing import mixtures_of


@dataclass
class ExpertCounter:
    """Counts the distinct experts of each mixture that runs inside ``counting``. ``mark`` is the
    iteration's: it says which stage the forwards before it were. Nothing waits for the device
    before ``means`` is asked for."""

    spec: Speculator
    _distinct: dict[str, Tensor] = field(default_factory=dict)
    _mixtures: Counter[str] = field(default_factory=Counter)
    _pending: list[Tensor] = field(default_factory=list)

    def mark(self, stage: str) -> None:
        """Ends ``stage``, or with ``BEGIN`` an iteration's before."""
        if self._pending and stage != BEGIN:
            together = torch.stack(self._pending).sum()
            self._distinct[stage] = self._distinct.get(stage, 0) + together
            self._mixtures[stage] += len(self._pending)
        self._pending.clear()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Every mixture of the target and its head is watched meanwhile."""
        mixtures = mixtures_of(self.spec.target.backbone, self.spec.head).values()
        handles = [each.register_forward_pre_hook(self._note) for each in mixtures]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        chosen: Tensor = args[1]
        assert isinstance(module.num_experts, int)
        seen = torch.zeros(module.num_experts, dtype=torch.long, device=chosen.device)
        self._pending.append(seen.index_fill_(0, chosen.flatten(), 1).sum())

    def means(self) -> dict[str, float]:
        """By stage, the mean distinct experts of one mixture in one forward."""
        return {
            stage: float(total) / self._mixtures[stage] for stage, total in self._distinct.items()
        }
