"""DFlash drafters under capture: a graph's tokens and drafts are eager's, and the audit passes."""

from pathlib import Path

import pytest
import torch

from cgbench.checks.findings import Answer
from cgbench.compile.decode import compiled
from cgbench.engine.deployment import capture
from cgbench.words import Phase, Scope
from tests.gpu.test_targets import MAX_NEW_TOKENS, decoded_alike
from tests.support.audited import MAX_NEW_TOKENS as SHORT
from tests.support.audited import make_deployment, run_all, subject_of
from tests.support.dflash import FORMS, FULL, Form, make_drafter, make_target
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    random_prompts,
    reference_model,
)

pytestmark = pytest.mark.gpu

by_name = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_decode_what_eager_decodes(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    drafter = make_drafter(tmp_path / "drafter", form)
    model = load_tiny(target, device="cuda", dtype=dtype, head=drafter)
    prompts = random_prompts(7)
    eager = decoded_alike(model, prompts)
    if dtype is torch.float32:
        reference = reference_model(target).to("cuda")
        assert eager == greedy_reference(reference, prompts, MAX_NEW_TOKENS)


@by_name
@pytest.mark.parametrize("is_compiled", [False, True], ids=["plain", "compiled"])
def test_the_audit_passes(form: Form, is_compiled: bool, tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    drafter = make_drafter(tmp_path / "drafter", form)
    deployment = make_deployment(
        target,
        head=drafter,
        device="cuda",
        attention="triton",
        scopes=(Scope.EAGER, Scope.PHASE, Scope.ITERATION),
    )
    if is_compiled:
        deployment = compiled(deployment)
    deployment = capture(deployment, lambda: None)
    try:
        nodes = {cost.phase: cost.nodes for cost in deployment.graph_sets[3, Scope.PHASE].costs}
        findings = run_all(subject_of(deployment))
    finally:
        deployment.release()
    assert {finding.answer for finding in findings} == {Answer.HOLDS}
    # Nothing but the commit is left to the graph of drafts 2..k.
    assert nodes[Phase.DRAFT_REST] in (None, 1)


def test_sampled_drafts_are_eagers(tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    drafter = make_drafter(tmp_path / "drafter", FULL)
    deployment = make_deployment(
        target,
        head=drafter,
        device="cuda",
        attention="triton",
        acceptance="sampled",
        scopes=(Scope.EAGER, Scope.ITERATION),
    )
    deployment = capture(deployment, lambda: None)
    spec, prompts = deployment.spec, random_prompts(5)
    made = [
        decode_prompts(spec, deployment.runners[3, scope], prompts, SHORT).token_ids
        for scope in (Scope.EAGER, Scope.ITERATION)
    ]
    deployment.release()
    assert made[0] == made[1]
