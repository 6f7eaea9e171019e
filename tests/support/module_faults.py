"""Faults of a head with several MTP modules to plant, each with the check that claims it."""

from typing import Any

import torch
from torch import Tensor

from cgbench.engine import iteration, prefill
from cgbench.engine.iteration import Speculator
from cgbench.kernels.row_updates import RowState
from cgbench.kernels.windows import module_window
from cgbench.models.heads.head import DraftHead, MtpModule
from tests.support.mutations import MODULES, Patch, mutation


@mutation("drafts", kind=MODULES)
def first_module_reused(patch: Patch) -> None:
    """Every draft step runs module 1, each with its own rows."""

    def module_of(self: DraftHead, step: int) -> MtpModule:
        return self

    patch.setattr(DraftHead, "module_of", module_of)


@mutation("drafts", kind=MODULES)
def module_fed_the_token_before(patch: Patch) -> None:
    """Module 2 has the token that module 1 had, and so on."""
    real = module_window.following
    patch.setattr(
        module_window, "following", lambda rows, index: real(rows, (index - 1).clamp(min=0))
    )


@mutation("drafts", kind=MODULES)
def carry_not_renewed(patch: Patch) -> None:
    """The hidden state before a window is that of the prompt's end, for ever."""
    real = iteration.draft_by_own_module

    def draft_by_own_module(spec: Speculator, rows: RowState, step: int) -> None:
        carries = rows.carries.clone()
        real(spec, rows, step)
        rows.carries.copy_(carries)

    patch.setattr(iteration, "draft_by_own_module", draft_by_own_module)


@mutation("drafts", kind=MODULES)
def rows_of_drafts_kept(patch: Patch) -> None:
    """What a module computed with drafts that were not kept stays in its KV."""
    real = iteration.draft_by_own_module

    def draft_by_own_module(spec: Speculator, rows: RowState, step: int) -> None:
        assert spec.head is not None
        kv = spec.cache.layers[spec.head.layer_numbers[step - 1]]
        row = rows.slot_of_row * spec.cache.room + (rows.seq_len - 1).clamp(min=0)
        before = kv.keys[row], kv.values[row]
        real(spec, rows, step)
        kv.keys[row], kv.values[row] = before

    patch.setattr(iteration, "draft_by_own_module", draft_by_own_module)


@mutation("drafts", kind=MODULES)
def later_modules_not_prefilled(patch: Patch) -> None:
    """Only the first module's KV holds the prompt."""
    real = prefill.prefill_slots

    def faulty(spec: Speculator, *args: Tensor) -> Any:
        done = real(spec, *args)
        assert spec.head is not None
        for number in spec.head.layer_numbers[1:]:
            for tensor in (spec.cache.layers[number].keys, spec.cache.layers[number].values):
                tensor.zero_()
        return done

    patch.setattr(prefill, "prefill_slots", faulty)


@mutation("isolation", kind=MODULES)
def module_remakes_a_row_too_many(patch: Patch) -> None:
    """The last module writes to a row that no draft had a part in."""
    real = iteration.draft_by_own_module

    def draft_by_own_module(spec: Speculator, rows: RowState, step: int) -> None:
        real(spec, rows, step)
        assert spec.head is not None
        kv = spec.cache.layers[spec.head.layer_numbers[step - 1]]
        row = rows.slot_of_row * spec.cache.room + (rows.seq_len - step).clamp(min=0)
        kv.keys[row] = torch.zeros_like(kv.keys[row])

    patch.setattr(iteration, "draft_by_own_module", draft_by_own_module)


@mutation("drafts", kind=MODULES)
def module_reads_past_its_window(patch: Patch) -> None:
    """A module's newest row is taken one row further on, where stale keys and drafts are read."""
    real = iteration.take_row

    def take_row(hidden: Tensor, index: Tensor) -> Tensor:
        is_window = hidden.shape[1] > 4
        return real(hidden, (index + is_window).clamp(max=hidden.shape[1] - 1))

    patch.setattr(iteration, "take_row", take_row)
