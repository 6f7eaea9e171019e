"""Faults in latent attention: the audit finds each of them, and the sound engine passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.checks import hygiene
from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Answer
from cgbench.engine import calls
from cgbench.kernels.mla import latent_attention, latent_prefill
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.kernels.mla.latent_weights import LatentWeights
from cgbench.models.heads.families import DEEPSEEK
from tests.support.audited import FEW_SIZES, loaded, make_tiny_subject, run_checks
from tests.support.tiny import make_checkpoint

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm")
    return make_checkpoint(folder, "glm4_moe_lite", seed=3, family=DEEPSEEK)


def rotary_at_the_wrong_offset(patch: Patch) -> None:
    """Decode takes the query's rotary columns from one column too early."""

    def rotary(new: LatentInput) -> Tensor:
        first = new.weights.key_size - 1
        return new.query[..., first : first + new.latent.shape[3] - new.weights.rank]

    patch.setattr(LatentInput, "rotary", property(rotary))


def w_uv_of_another_head(patch: Patch) -> None:
    """Each head's result is multiplied by the next head's values."""
    real = latent_attention.project

    def project(attended: Tensor, weights: LatentWeights) -> Tensor:
        return real(attended.roll(1, 1), weights).roll(-1, 1)

    patch.setattr(latent_attention, "project", project)


def latent_row_written_twice(patch: Patch) -> None:
    """A decode step's first latent is written to the committed row before it, too."""
    real = latent_attention.decode

    def decode(latents: Tensor, new: LatentInput, slots: Tensor, *places: Any) -> Tensor:
        out = real(latents, new, slots, *places)
        positions, room = places[0], places[1]
        before = slots * room + (positions[:, 0] - 1).clamp(min=0)
        latents[before] = new.latent[:, :, 0]
        return out

    patch.setattr(latent_attention, "decode", decode)


def causal_tail_one_row_too_wide(patch: Patch) -> None:
    """A query sees the row after its own."""
    real = latent_attention.live_mask
    patch.setattr(
        latent_attention,
        "live_mask",
        lambda positions, room, window: real(positions + 1, room, window),
    )


def prefill_of_the_wrong_heads(patch: Patch) -> None:
    """Prompts' heads are expanded two at a time, and each pair reads the first pair's weights."""
    real = LatentWeights.heads
    patch.setattr(latent_prefill, "heads_a_chunk", lambda new: 2)
    patch.setattr(LatentWeights, "heads", lambda self, first, end: real(self, 0, end - first))


def prefill_stores_another_slots_rows(patch: Patch) -> None:
    """Prompts' latents go to the slot after their own."""
    flat = calls.Rows.flat.func  # type: ignore[attr-defined]
    patch.setattr(calls.Rows, "flat", property(lambda rows: torch.roll(flat(rows), 1)))


FAULTS = (
    rotary_at_the_wrong_offset,
    w_uv_of_another_head,
    latent_row_written_twice,
    causal_tail_one_row_too_wide,
    prefill_of_the_wrong_heads,
    prefill_stores_another_slots_rows,
)


def test_the_sound_engine_passes(folder: Path) -> None:
    """In bfloat16 the absorbed form rounds otherwise than the expanded reference. In float32
    ``test_audit`` has DeepSeek-V3."""
    how: dict[str, Any] = {"spec_tokens": (3,), "dtype": torch.bfloat16, "batch_sizes": FEW_SIZES}
    subject = make_tiny_subject(folder, **how)
    findings = run_checks(subject)
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_found(folder: Path, monkeypatch: Patch, plant: Callable[[Patch], None]) -> None:
    plant(monkeypatch)
    subject = make_tiny_subject(folder, spec_tokens=(3,), model=loaded(folder))
    checks = (check for check in CHECKS if check.name != hygiene.NAME)
    assert any(check.run(subject).answer is Answer.WRONG for check in checks)
