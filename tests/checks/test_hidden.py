"""The hidden check in lower precision: where the reference moves as far itself is no fault."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cgbench.checks import hidden
from cgbench.checks.findings import Answer, Finding
from cgbench.checks.noise import NOISE_TRIES, moved_embeddings
from cgbench.engine.iteration import Speculator
from cgbench.kernels.row_updates import RowState
from tests.support.audited import make_tiny_subject
from tests.support.mutations import MUTATIONS, Mutation
from tests.support.tiny import make_checkpoint

DENSE = "mimo"


def check(folder: Path) -> Finding:
    return hidden.run(make_tiny_subject(folder, spec_tokens=(3,), dtype=torch.bfloat16))


@pytest.mark.parametrize(("tries", "answer"), [(NOISE_TRIES, Answer.HOLDS), (0, Answer.WRONG)])
def test_a_row_that_rounding_moves_as_far_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: int, answer: Answer
) -> None:
    """The engine's numbers are rounded otherwise than the reference's, by as little as may be.

    Little is allowed beforehand, so that rows are asked. ``tries`` 0 lets no row move.
    """
    real = hidden.stages.verify

    def rounded_otherwise(spec: Speculator, rows: RowState) -> Tensor:
        with moved_embeddings(spec.target, seed=1001):
            return real(spec, rows)

    monkeypatch.setattr(hidden.stages, "verify", rounded_otherwise)
    monkeypatch.setattr(hidden, "allowed_error", lambda subject: 0.01)
    monkeypatch.setattr(hidden, "NOISE_TRIES", tries)
    finding = check(make_checkpoint(tmp_path, "mimo"))
    assert finding.answer is answer
    assert finding.figures["largest_relative_error"] > finding.figures["allowed_relative_error"]


FAULTS = [
    mutation
    for mutation in MUTATIONS
    if mutation.claimed_by == hidden.NAME and mutation.kind == DENSE
]
"""Those of a dense model."""


@pytest.mark.parametrize("mutation", FAULTS, ids=lambda mutation: mutation.name)
def test_a_fault_is_caught_in_bfloat16_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: Mutation
) -> None:
    folder = make_checkpoint(tmp_path, DENSE)
    mutation.plant(monkeypatch)
    assert check(folder).answer is Answer.WRONG
