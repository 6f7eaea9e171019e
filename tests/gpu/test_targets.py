"""Mixtures of experts, latent attention, windows, sinks, hybrids and every head wiring under
capture, of one module and of several: the tokens of graphs are eager's and plain greedy's, in
float32."""

from pathlib import Path

import pytest
import torch

from cgbench.engine.graphs import capture_plan
from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner, GraphRunner, Runner
from cgbench.models.heads.families import (
    DEEPSEEK,
    EAGLE,
    ERNIE,
    EXAONE,
    HY,
    MIMO,
    MIMO_V2,
    QWEN,
    STEP,
    HeadFamily,
)
from cgbench.models.heads.head import HeadForm
from cgbench.models.latent.latent_hook import latent_path
from cgbench.models.loader import LoadedModel
from cgbench.planning import PlanRequest, plan
from cgbench.words import Scope
from tests.support.tiny import (
    HYBRID_CONFIGS,
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

pytestmark = pytest.mark.gpu

K, MAX_BATCH, MAX_NEW_TOKENS = 3, 8, 24
ROOM = 24 + MAX_NEW_TOKENS + 2 * K

CASES = [
    (MIMO, "qwen3_moe"),
    (MIMO, "gemma3_text"),
    (DEEPSEEK, "deepseek_v3"),
    (DEEPSEEK, "glm4_moe_lite"),
    (DEEPSEEK, "deepseek_v3-yarn"),
    (MIMO, "minicpm3"),
    (MIMO, "mistral4"),
    (DEEPSEEK, "glm4_moe"),
    (HY, "hy_v3"),
    (STEP, "step3p7"),
    (STEP, "step3p5"),
    (MIMO_V2, "mimo_v2_flash"),
    (MIMO, "gpt_oss"),
    (EXAONE, "exaone4"),
    (ERNIE, "ernie4_5_moe"),
    (QWEN, "qwen3_next"),
    (EAGLE, "llama"),
    *((QWEN, kind) for kind in HYBRID_CONFIGS),
]


def decode(spec: Speculator, runner: Runner, prompts: list[list[int]]) -> list[list[int]]:
    return decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=512).token_ids


def drafts(spec: Speculator, runner: Runner, prompts: list[list[int]]) -> list[list[list[int]]]:
    """The drafts after each of a few iterations. Batch of seven in a bucket of eight."""
    prefilled = prefill(spec, prompts, max_num_tokens=512)
    begin_decoding(spec, runner.state, prefilled, tokens_left=MAX_NEW_TOKENS)
    made = []
    for _ in range(4):
        runner.step(len(prompts))
        made.append(runner.state.rows(len(prompts)).drafts.tolist())
    return made


def decoded_alike(model: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    """The tokens of eager decoding, which those of graphs must equal in both scopes.

    Seven prompts are in a bucket of eight, so that one row is padding. In float32 the drafts must
    be equal too, because lossless decoding hides a wrong draft."""
    spec = make_speculator(model, max_batch_size=MAX_BATCH, room=ROOM, attention="triton")
    state = make_state(spec, K, MAX_BATCH)
    small = plan(PlanRequest(spec_tokens=K, max_batch_size=MAX_BATCH))
    eager = decode(spec, EagerRunner(spec, state), prompts)
    for scope in (Scope.PHASE, Scope.ITERATION):
        graphs = capture_plan(spec, state, small, scope)
        runner = GraphRunner(spec, state, small, graphs)
        assert decode(spec, runner, prompts) == eager
        if model.target.dtype is torch.float32:
            expected = drafts(spec, EagerRunner(spec, state), prompts)
            assert drafts(spec, runner, prompts) == expected
        graphs.release()
    return eager


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("family", "kind"), CASES, ids=lambda value: getattr(value, "name", value))
def test_graphs_decode_what_eager_decodes(
    family: HeadFamily, kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    # Step's heads, and some of EAGLE's, have an output matrix of their own.
    several = family in (STEP, MIMO_V2)
    form = HeadForm(own_output=family in (STEP, EAGLE), dense=True if several else None)
    modules = 3 if several else 1
    folder = make_checkpoint(tmp_path, kind, family=family, seed=3, form=form, num_modules=modules)
    model = load_tiny(folder, device="cuda", dtype=dtype)
    prompts = random_prompts(7)
    eager = decoded_alike(model, prompts)
    if kind.startswith("deepseek"):
        assert latent_path(model.target.backbone, model.head) == "kernels"
    if dtype is torch.float32:
        reference = reference_model(folder).to("cuda")
        assert eager == greedy_reference(reference, prompts, MAX_NEW_TOKENS)
