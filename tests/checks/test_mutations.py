"""Every check catches the faults that it claims: one planted at a time, in the real engine."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from cgbench.checks.catalogue import CHECKS
from cgbench.checks.findings import Answer, Finding
from cgbench.checks.subject import Subject
from cgbench.compile.layers import compile_forwards
from cgbench.models.heads.head import HeadForm
from tests.support.audited import FEW_SIZES, loaded, make_tiny_subject, run_checks
from tests.support.mixtures import operators_alone
from tests.support.module_faults import MODULES
from tests.support.mutations import MUTATIONS, OWN, Mutation
from tests.support.tiny import make_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind; mistral's attention has a window, Qwen3.5 is mostly recurrent, Qwen3-Next has a
    shared expert with a gate."""
    form = HeadForm(own_embedding=True, own_output=True)
    own = make_checkpoint(tmp_path_factory.mktemp(OWN), "mimo", seed=3, form=form)
    kinds = ("mimo", "mistral", "qwen3_5", "qwen3_next")
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in kinds}
    made = {kind: make_checkpoint(folder, kind, seed=3) for kind, folder in folders.items()}
    several = tmp_path_factory.mktemp(MODULES)
    make_checkpoint(several, "mimo", seed=3, num_modules=3)
    return made | {OWN: own, MODULES: several}


@pytest.mark.parametrize(
    ("kind", "seed", "with_graphs"),
    [
        ("mimo", 1, True),
        ("mistral", 0, False),
        ("qwen3_5", 0, True),
        (OWN, 0, False),
        (MODULES, 0, False),
    ],
)
def test_the_unmutated_engine_passes(
    checkpoints: dict[str, Path], kind: str, seed: int, with_graphs: bool
) -> None:
    """By every check where there are graphs, and else by those that claim a fault of the kind."""
    how: dict[str, Any] = {"spec_tokens": (3,), "with_graphs": with_graphs}
    how |= {"spec_tokens": (0, 3)} if kind == "mimo" else {"batch_sizes": FEW_SIZES}
    subject = make_tiny_subject(checkpoints[kind], seed=seed, **how)
    findings = run_checks(subject) if with_graphs else run_claiming(kind, subject)
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]


def run_claiming(kind: str, subject: Subject) -> list[Finding]:
    claiming = {mutation.claimed_by for mutation in MUTATIONS if mutation.kind == kind}
    findings = [check.run(subject) for check in CHECKS if check.name in claiming]
    assert {finding.check for finding in findings} == claiming
    assert not [finding for finding in findings if finding.answer is Answer.NOT_RUN]
    return findings


@contextmanager
def through_operators(subject: Subject) -> Iterator[None]:
    """Decode steps run as they are compiled meanwhile."""
    with operators_alone():
        compile_forwards(subject.spec.target, subject.spec.head)
        yield


def test_mixtures_pass_as_operators(checkpoints: dict[str, Path]) -> None:
    subject = make_tiny_subject(checkpoints["qwen3_next"], spec_tokens=(3,), batch_sizes=FEW_SIZES)
    with through_operators(subject):
        findings = run_claiming("qwen3_next", subject)
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_caught_by_the_check_that_claims_it(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, mutation: Mutation
) -> None:
    mutation.plant(monkeypatch)
    (check,) = [check for check in CHECKS if check.name == mutation.claimed_by]
    folder = checkpoints[mutation.kind]
    # A layer that runs as an operator is changed by it.
    model = None if mutation.with_operators else loaded(folder)
    how: dict[str, Any] = {"with_graphs": mutation.with_graphs, "model": model}
    subject = make_tiny_subject(folder, spec_tokens=(3,), **how)
    with through_operators(subject) if mutation.with_operators else nullcontext():
        finding = check.run(subject)
    assert finding.answer is Answer.WRONG
    assert finding.difference is not None and finding.difference.text
