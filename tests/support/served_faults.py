"""Faults that were reported of serving engines, planted one at a time in ``ServingEngine``."""

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from cgbench.engine.iteration import iteration
from cgbench.engine.state import DecodeState
from cgbench.models.target import HiddenStates, Target
from tests.support.serving import Served, ServingEngine

FAULTS: dict[str, type[ServingEngine]] = {}


def fault(engine: type[ServingEngine]) -> type[ServingEngine]:
    FAULTS[engine.__name__] = engine
    return engine


@fault
class StalePaddedRows(ServingEngine):
    """Padded rows keep the slot and the length of a request, and write into its KV."""

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        rows = state.full
        if bucket is not None and count < bucket:
            rows.slot_of_row[count:bucket] = rows.slot_of_row[0].clone()
            rows.seq_len[count:bucket] = rows.seq_len[0] // 2
        super().run(state, count, bucket)
        rows.slot_of_row[count:] = state.scratch_slot
        rows.seq_len[count:] = 0


@fault
class DrafterLostUnderGraphs(ServingEngine):
    """What the drafter writes in a graph is not where verify reads it: no draft is right there."""

    alone = "without drafts"

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        super().run(state, count, bucket)
        if bucket is not None and self.k:
            drafts = state.full.drafts
            drafts.copy_((drafts + 7) % 4096)


@fault
class DraftKvStaleAfterNone(ServingEngine):
    """The head's KV is not written while k = 0, and is read as if it was."""

    def caught_up(self, request: Served) -> Tensor | None:
        assert self.spec.head is not None
        kv = self.spec.cache.layers[self.spec.head.layer_idx]
        before = kv.keys.clone(), kv.values.clone()
        block_out = super().caught_up(request)
        kv.keys.copy_(before[0])
        kv.values.copy_(before[1])
        return block_out


@fault
class OutputBufferReused(ServingEngine):
    """Now and then the host reads a step's tokens after the next step has overwritten them."""

    steps = 0

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        super().run(state, count, bucket)
        self.steps += 1
        if bucket is not None and bucket > 2 and self.steps % 5 == 0:
            super().run(state, count, bucket)


class _Shifted:
    """A target whose positions are one too high."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def forward(self, tokens: Tensor, positions: Tensor, call: Any) -> HiddenStates:
        found: HiddenStates = self.target.forward(tokens, positions + 1, call)
        return found


@fault
class PositionsOffAboveAnEdge(ServingEngine):
    """Verify's positions are one too high in buckets above 2."""

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        if bucket is None or bucket <= 2:
            super().run(state, count, bucket)
            return
        sound = self.spec
        self.spec = replace(sound, target=cast(Target, _Shifted(sound.target)))
        super().run(state, count, bucket)
        self.spec = sound


@fault
class WrongBucket(ServingEngine):
    """A batch between two buckets replays the smaller one: its last rows are not computed."""

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        below = [each for each in self.buckets if each <= count]
        super().run(state, count, below[-1] if bucket is not None and below else bucket)


@fault
class NeighboursSlot(ServingEngine):
    """In a padded batch the first two rows read and write each other's KV."""

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        is_padded = bucket is not None and 2 <= count < bucket
        slots = state.full.slot_of_row
        if is_padded:
            slots[:2] = slots[:2].flip(0)
        super().run(state, count, bucket)
        if is_padded:
            slots[:2] = slots[:2].flip(0)


@fault
class TruncatedList(ServingEngine):
    """The largest size in tokens is no multiple of k + 1, and its last request is cut off."""

    def run(self, state: DecodeState, count: int, bucket: int | None) -> None:
        if bucket == self.buckets[-1] and count == bucket:
            iteration(self.spec, state.rows(bucket - 1))
        else:
            super().run(state, count, bucket)
