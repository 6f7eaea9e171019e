"""Faults in FP8 keys and values: the audit finds each of them, and the sound engine passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Answer
from cgbench.engine import calls
from cgbench.kernels import attention
from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.request.choices import KvDtype
from tests.support.audited import (
    FEW_SIZES,
    loaded,
    make_tiny_subject,
    run_checks,
    run_reference_checks,
)
from tests.support.tiny import make_checkpoint

Patch = pytest.MonkeyPatch
LiveRows = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense model, one with a window, one that is mostly recurrent, one whose head has three
    modules."""
    modules = {"mimo": 1, "mistral": 1, "qwen3_5": 1, "modules": 3}
    made = {kind: tmp_path_factory.mktemp(kind) for kind in modules}
    for kind, num_modules in modules.items():
        name = "mimo" if kind == "modules" else kind
        make_checkpoint(made[kind], name, seed=3, num_modules=num_modules)
    return made


def read_with(patch: Patch, change: Callable[[Tensor], Tensor]) -> None:
    """Decode reads its keys and values with other scales than those stored."""
    real = attention.live_rows

    def live_rows(kv: LayerKv, *where: Any) -> tuple[Tensor, Tensor]:
        assert kv.scales is not None
        scales = type(kv.scales)(*map(change, kv.scales))
        return real(LayerKv(kv.keys, kv.values, scales), *where)

    patch.setattr(attention, "live_rows", live_rows)


def scale_of_the_neighbouring_head(patch: Patch) -> None:
    read_with(patch, lambda scale: scale.roll(1, 1))


def scale_of_the_neighbouring_token(patch: Patch) -> None:
    read_with(patch, lambda scale: scale.roll(1, 2))


def scale_applied_twice(patch: Patch) -> None:
    read_with(patch, lambda scale: scale * scale)


def scale_not_applied(patch: Patch) -> None:
    read_with(patch, torch.ones_like)


def stale_scale_of_a_reused_slot(patch: Patch) -> None:
    """Prompts store their rows, and leave the scales of whoever had the slot before."""
    real = calls.write_kv

    def write_kv(kv: LayerKv, slots: Tensor, positions: Tensor, *rest: Any) -> AttentionInput:
        assert kv.scales is not None
        before = [scale.clone() for scale in kv.scales]
        kept = real(kv, slots, positions, *rest)
        if positions.shape[1] > 4:
            for scale, old in zip(kv.scales, before, strict=True):
                scale.copy_(torch.where(old > 0, old, scale))
        return kept

    patch.setattr(calls, "write_kv", write_kv)


def new_rows_are_not_rounded(patch: Patch) -> None:
    """A prompt attends over what its layers computed, and decode over what is kept of it."""
    real = calls.store

    def store(kv: LayerKv, rows: calls.Rows, qkv: AttentionInput) -> AttentionInput:
        real(kv, rows, qkv)
        return qkv

    patch.setattr(calls, "store", store)


FAULTS = (
    scale_of_the_neighbouring_head,
    scale_of_the_neighbouring_token,
    scale_applied_twice,
    scale_not_applied,
    stale_scale_of_a_reused_slot,
    new_rows_are_not_rounded,
)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("mimo", torch.bfloat16),
        ("mistral", torch.float32),
        ("qwen3_5", torch.float32),
        ("modules", torch.float32),
    ],
    ids=str,
)
def test_the_sound_engine_passes(folders: dict[str, Path], kind: str, dtype: torch.dtype) -> None:
    lengths = (0, 3) if kind == "mistral" else (3,)
    how: dict[str, Any] = {"spec_tokens": lengths, "dtype": dtype, "kv_dtype": KvDtype.FP8}
    subject = make_tiny_subject(folders[kind], with_graphs=True, batch_sizes=FEW_SIZES, **how)
    assert not subject.is_exact
    findings = run_checks(subject) if kind == "mimo" else run_reference_checks(subject)
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]
    assert {finding.answer for finding in findings} >= {Answer.HOLDS}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_is_found(
    folders: dict[str, Path], monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    """In bfloat16, where more is forgiven. There two roundings of one prompt differ by as much as
    the last fault, so that one is looked for in float32."""
    plant(monkeypatch)
    dtype = torch.float32 if plant is new_rows_are_not_rounded else torch.bfloat16
    how: dict[str, Any] = {"dtype": dtype, "kv_dtype": KvDtype.FP8}
    model = loaded(folders["mimo"], **how)
    subject = make_tiny_subject(folders["mimo"], spec_tokens=(3,), model=model, **how)
    checks = (check for check in CHECKS if check.name in ("hidden", "equality", "isolation"))
    assert any(check.run(subject).answer is Answer.WRONG for check in checks)
