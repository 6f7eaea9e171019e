"""Compiled decode layers: the same tokens, few forms, and everything but decode as it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.fx import GraphModule

from cgbench.compile.operators import GATED_LINEAR, LINEAR, LINEAR_ADD, ROTATED_LINEAR
from cgbench.models.heads.families import DEEPSEEK, MIMO, MIMO_V2, STEP, HeadFamily
from cgbench.models.heads.head import HeadForm
from tests.support.compiled import BATCH_SIZES, MAX_NEW_TOKENS, compiled, decoded, generated
from tests.support.fusion import mixture_ends
from tests.support.mixtures import SHORT_HYBRIDS
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers

SEVERAL = (5, 3)
ALSO_ALONE = ("qwen3_5_moe",)
"""Asked for one request too, which has forms of its own. Without a mixture, scaled layers are."""


@pytest.fixture
def traced_only() -> Iterator[list[GraphModule]]:
    """Forms are traced as ever and run as traced; their graphs."""
    with traced_layers() as graphs:
        yield graphs


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.slow
def test_tokens_are_plain_greedy_decodings(tmp_path: Path) -> None:
    """By the compiler itself, with drafts: dense layers, and latent ones with a mixture, whose
    forms' inputs the compiler counts. In one test, because each process that compiles imports the
    compiler. Forms without drafts or for one request are traced where fusion is tried."""
    mixture = {"num_hidden_layers": 1, "first_k_dense_replace": 0}
    # Without the headers of vector instructions, C++ compiles a quarter faster.
    with inductor.patch({"cpp.simdlen": 1}):
        check_tokens(tmp_path / "mimo", "mimo", 2)
        torch._dynamo.reset()
        check_tokens(tmp_path / "deepseek_v3", "deepseek_v3", 1, family=DEEPSEEK, **mixture)


@pytest.mark.parametrize(
    ("kind", "spec_tokens"),
    [
        ("qwen3_5_moe", 1),
        # Its router writes in place, and stays transformers' own.
        ("hy_v3", 1),
    ],
)
def test_other_kinds_trace_to_the_same_tokens(
    tmp_path: Path, traced_only: list[GraphModule], kind: str, spec_tokens: int
) -> None:
    """A mixture's experts take what its layer ends with; not hy_v3's, whose sum is in float32.

    Other kinds are traced where fusion is tested, GLM where scales and ranks are, and those whose
    layers are counted below.
    """
    check_tokens(tmp_path, kind, spec_tokens)
    ends = [end for graph in traced_only for end in mixture_ends(graph)]
    assert {end is None for end in ends} == {kind == "hy_v3"}


def test_a_heads_own_matrices_trace_to_the_same_drafts(
    tmp_path: Path, traced_only: list[GraphModule]
) -> None:
    form = HeadForm(own_embedding=True, own_output=True)
    folder = make_checkpoint(tmp_path, "mimo", form=form)
    eager = make_speculator(load_tiny(folder), max_batch_size=max(BATCH_SIZES), room=64)
    _, spec = compiled(folder)
    assert generated(spec, 3, 5).accepted == generated(eager, 3, 5).accepted


@pytest.mark.parametrize(
    ("family", "kind", "num_modules"),
    [(MIMO, "gpt_oss", 1), (MIMO_V2, "mimo_v2_flash", 2), (STEP, "step3p5", 2)],
    ids=lambda value: getattr(value, "name", value),
)
def test_sinks_and_several_modules_trace_to_the_same_drafts(
    tmp_path: Path,
    traced_only: list[GraphModule],
    family: HeadFamily,
    kind: str,
    num_modules: int,
) -> None:
    """Step's limited experts too, which no kernel of ours applies."""
    form = HeadForm(dense=num_modules > 1)
    folder = make_checkpoint(tmp_path, kind, family=family, form=form, num_modules=num_modules)
    eager = make_speculator(load_tiny(folder), max_batch_size=max(BATCH_SIZES), room=64)
    prompts = random_prompts(max(BATCH_SIZES))
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    _, spec = compiled(folder)
    traced = generated(spec, 2, 5)
    assert traced.token_ids == expected
    assert traced.accepted == generated(eager, 2, 5).accepted
    assert traced_only


def check_tokens(
    tmp_path: Path, kind: str, spec_tokens: int, family: HeadFamily = MIMO, **shape: Any
) -> None:
    shape |= SHORT_HYBRIDS.get(kind, {})
    folder = make_checkpoint(tmp_path, kind, family=family, **shape)
    prompts = random_prompts(max(BATCH_SIZES))
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    _, spec = compiled(folder)
    for batch_size in BATCH_SIZES if kind in ALSO_ALONE else SEVERAL:
        assert decoded(spec, spec_tokens, batch_size) == expected[:batch_size]


def test_equal_layers_share_their_forms(tmp_path: Path, traced_only: list[GraphModule]) -> None:
    """Two of each sort have one form a sort, and the head's layer has that of full attention. No
    other batch size has more. Tokens are plain greedy decoding's."""
    layer_types = 2 * ["linear_attention", "full_attention"]
    folder = make_checkpoint(tmp_path, "qwen3_next-hybrid", layer_types=layer_types)
    prompts = random_prompts(max(BATCH_SIZES))
    expected = greedy_reference(reference_model(folder), prompts, MAX_NEW_TOKENS)
    _, spec = compiled(folder)
    assert decoded(spec, 1, 5) == expected
    forms = counters["stats"]["unique_graphs"]
    layers = [graph for graph in traced_only if "cgbench.linear" in str(graph.graph)]
    assert len(layers) == 2
    assert decoded(spec, 1, 3) == expected[:3]
    assert counters["stats"]["unique_graphs"] == forms


def test_transformers_own_generate_is_left_as_it_was(
    tmp_path: Path, traced_only: list[GraphModule]
) -> None:
    """Its layers are not traced. The norm after them is, and rotary tables are."""
    from cgbench.checks.reference import Plain

    folder = make_checkpoint(tmp_path, "llama")
    prompts = [tuple(prompt) for prompt in random_prompts(2)]
    expected = greedy_reference(reference_model(folder), [[*p] for p in prompts], MAX_NEW_TOKENS)
    model, _ = compiled(folder)
    plain = Plain(model.target, prompts)
    assert [plain.tokens(prompt, MAX_NEW_TOKENS) for prompt in prompts] == expected
    operators = {node.target for graph in traced_only for node in graph.graph.nodes}
    assert operators and not operators & {GATED_LINEAR, LINEAR, LINEAR_ADD, ROTATED_LINEAR}
