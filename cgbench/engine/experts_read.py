"""Count on the device how many experts the forwards of an iteration read."""

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cgbench.engine.iteration import Speculator
from cgbench.models.routing import mixtures_of, watched_choices
from cgbench.words import Stage


@dataclass
class ExpertCounter:
    """An expert counter counts the distinct experts of each mixture that runs inside ``counting``.

    ``mark`` serves as the iteration's mark and assigns the forwards before it to a stage. Nothing
    waits for the device before ``means`` is called.
    """

    spec: Speculator
    _distinct: dict[Stage, Tensor] = field(default_factory=dict)
    _mixtures: Counter[Stage] = field(default_factory=Counter)
    _pending: list[Tensor] = field(default_factory=list)

    def mark(self, stage: Stage | None) -> None:
        """End ``stage``, and add the counts since the last mark to it.

        With None the counts are dropped, because they ran before an iteration.
        """
        if self._pending and stage is not None:
            together = torch.stack(self._pending).sum()
            self._distinct[stage] = self._distinct.get(stage, 0) + together
            self._mixtures[stage] += len(self._pending)
        self._pending.clear()

    def counting(self) -> AbstractContextManager[None]:
        """Return a context in which every mixture of the target and its head is watched."""
        mixtures = mixtures_of(self.spec.target.backbone, self.spec.head)
        return watched_choices(mixtures, self._note)

    def _note(self, _: int, num_experts: int, chosen: Tensor) -> None:
        seen = torch.zeros(num_experts, dtype=torch.long, device=chosen.device)
        self._pending.append(seen.index_fill_(0, chosen.flatten(), 1).sum())

    def means(self) -> dict[Stage, float]:
        """Return, by stage, the mean distinct experts of one mixture in one forward."""
        return {
            stage: float(total) / self._mixtures[stage] for stage, total in self._distinct.items()
        }
