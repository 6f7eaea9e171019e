"""The drafts check in lower precision: a chain's own rounding is no fault, and a fault is none."""

from pathlib import Path

import pytest
import torch

import cgbench.models
from cgbench.checks import drafts, steps
from cgbench.checks.findings import Answer, Finding
from cgbench.checks.noise import moved_embeddings
from cgbench.checks.tokens import NEAR_TIE_NOISES
from cgbench.engine.iteration import Speculator
from cgbench.kernels.row_updates import RowState
from tests.support.audited import loaded, make_tiny_subject
from tests.support.mutations import MUTATIONS, OWN, Mutation
from tests.support.tiny import edit_config, make_checkpoint

SHIPPED = Path(cgbench.models.__file__).parent / "default"


def check(folder: Path) -> Finding:
    model = loaded(folder, dtype=torch.bfloat16)
    subject = make_tiny_subject(folder, spec_tokens=(3,), dtype=torch.bfloat16, model=model)
    return drafts.run(subject)


def test_what_rounding_makes_of_an_untrained_chain_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's numbers are rounded otherwise than the reference's, by as little as may be."""
    real = steps.iteration

    def rounded_otherwise(spec: Speculator, rows: RowState) -> None:
        with moved_embeddings(spec.target, seed=1001):
            real(spec, rows)

    monkeypatch.setattr(steps, "iteration", rounded_otherwise)
    shape = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "vocab_size": 256}
    folder = make_checkpoint(tmp_path, "mimo", **shape)
    # A norm on the way would take back most of what a chain makes of its rounding.
    edit_config(folder, cgbench_head={"hidden_in": "pre", "chain": "pre"})
    finding = check(folder)
    assert finding.answer is Answer.HOLDS
    figures = finding.figures
    # One forward's noise would not have explained it.
    assert figures["largest_margin"] > NEAR_TIE_NOISES * figures["noise"]
    assert figures["chain_noise"] > 2 * figures["noise"]


def test_a_trained_chain_is_as_drafted() -> None:
    assert check(SHIPPED).answer is Answer.HOLDS


FAULTS = [
    mutation
    for mutation in MUTATIONS
    if mutation.claimed_by == drafts.NAME and mutation.kind != OWN
]
"""Those that the shipped model's head can have."""


@pytest.mark.parametrize("mutation", FAULTS, ids=lambda mutation: mutation.name)
def test_a_fault_is_caught_in_bfloat16_too(
    monkeypatch: pytest.MonkeyPatch, mutation: Mutation
) -> None:
    mutation.plant(monkeypatch)
    finding = check(SHIPPED)
    assert finding.answer is Answer.WRONG
    # The chain was asked, and has not drowned it.
    assert finding.figures["chain_noise"] < finding.figures["largest_margin"] / NEAR_TIE_NOISES
