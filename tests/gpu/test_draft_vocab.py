"""A reduced draft vocabulary under capture: a graph's tokens and drafts are eager's."""

import json
from pathlib import Path

import pytest
import torch

from cgbench.checks.findings import Answer
from cgbench.compile.decode import compiled
from cgbench.engine.deployment import capture
from cgbench.models.heads.families import MIMO
from cgbench.words import Scope
from tests.gpu.test_targets import MAX_NEW_TOKENS, decoded_alike
from tests.support.audited import make_deployment, run_all, subject_of
from tests.support.fp8 import is_converted, make_fp8_checkpoint
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_checkpoint,
    random_prompts,
    reference_model,
)

pytestmark = pytest.mark.gpu

SCOPES = (Scope.EAGER, Scope.PHASE, Scope.ITERATION)


@pytest.fixture
def ranks(tmp_path: Path) -> Path:
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps([*range(60, 3, -3)]))
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphs_decode_what_eager_decodes(dtype: torch.dtype, ranks: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo")
    model = load_tiny(folder, device="cuda", dtype=dtype, draft_vocab_from=ranks)
    prompts = random_prompts(7)
    eager = decoded_alike(model, prompts)
    if dtype is torch.float32:
        reference = reference_model(folder).to("cuda")
        assert eager == greedy_reference(reference, prompts, MAX_NEW_TOKENS)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["plain", "compiled"])
def test_the_audit_passes(is_compiled: bool, ranks: Path, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo")
    model = load_tiny(folder, device="cuda", draft_vocab_from=ranks)
    how = {"device": "cuda", "attention": "triton", "scopes": SCOPES}
    deployment = make_deployment(folder, model=model, **how)
    deployment = capture(compiled(deployment) if is_compiled else deployment, lambda: None)
    try:
        findings = run_all(subject_of(deployment))
    finally:
        deployment.release()
    assert {finding.answer for finding in findings} == {Answer.HOLDS}


@torch.inference_mode()
def test_fp8_rows_multiply_as_the_whole_matrix_does(ranks: Path, tmp_path: Path) -> None:
    """Few rows go through the kernel that streams weights, and many through the library."""

    def converts(name: str, tensor: torch.Tensor) -> bool:
        return is_converted(name, tensor) or name == "lm_head.weight"

    folder, _ = make_fp8_checkpoint(tmp_path / "fp8", "mimo", MIMO, converts=converts)
    how = {"device": "cuda", "dtype": torch.bfloat16}
    model = load_tiny(folder, draft_vocab_from=ranks, **how)
    assert model.head is not None and model.head.target_ids is not None
    for num_rows in (3, 256):
        hidden = torch.randn(num_rows, 32, device="cuda", dtype=torch.bfloat16)
        cut = model.target.logits(hidden, model.head.output).float()
        whole = model.target.logits(hidden).float()[:, model.head.target_ids]
        assert torch.allclose(cut, whole, rtol=2e-2, atol=2e-2)
