"""Latent attention in the absorbed form emits the tokens of transformers' expanded form."""

from pathlib import Path

import pytest
import torch

from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.families import DEEPSEEK, MIMO
from cgbench.models.loader import LoadedModel
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 12
NUM_PROMPTS = 5
ROOM = 24 + MAX_NEW_TOKENS + 2 * 5

FAMILIES = {
    "deepseek_v3": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
    "deepseek_v3-yarn": DEEPSEEK,
    "deepseek_v3-plain-query": DEEPSEEK,
    "minicpm3": MIMO,
    "mistral4": MIMO,
    "youtu": MIMO,
}
WITHOUT_HEAD = ("deepseek_v2", "axk1")


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    return make_checkpoint(tmp_path_factory.mktemp(kind), kind, seed=3, family=FAMILIES[kind])


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return reference_tokens(folder)


def reference_tokens(folder: Path) -> list[list[int]]:
    tokens = greedy_reference(reference_model(folder), random_prompts(NUM_PROMPTS), MAX_NEW_TOKENS)
    # A model that repeats a few tokens would make an equality cheap.
    assert len({token for row in tokens for token in row}) > 12
    return tokens


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load_tiny(folder)


@pytest.fixture(scope="module")
def expanded(folder: Path) -> LoadedModel:
    return load_tiny(folder, keeps_latents=False)


def speculator(model: LoadedModel) -> Speculator:
    return make_speculator(model, max_batch_size=NUM_PROMPTS, room=ROOM)


def decoded(spec: Speculator, k: int, prompts: list[list[int]]) -> list[list[int]]:
    state = make_state(spec, k, NUM_PROMPTS)
    runner = EagerRunner(spec, state)
    return decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=64).token_ids


@pytest.mark.parametrize("spec_tokens", [0, 5])
def test_ragged_batches_equal_plain_greedy(
    model: LoadedModel, expected: list[list[int]], spec_tokens: int
) -> None:
    spec = speculator(model)
    assert decoded(spec, spec_tokens, random_prompts(NUM_PROMPTS)) == expected
    assert not any(kv.values.numel() for kv in spec.cache.layers.values())


def test_one_request_equals_plain_greedy(model: LoadedModel, expected: list[list[int]]) -> None:
    spec = speculator(model)
    for k, number in ((1, 0), (3, 4)):
        got = decoded(spec, k, [random_prompts(NUM_PROMPTS)[number]])
        assert got == [expected[number]]


def test_the_expanded_form_equals_plain_greedy(
    expanded: LoadedModel, expected: list[list[int]]
) -> None:
    spec = speculator(expanded)
    assert not spec.cache.keeps_latents
    assert decoded(spec, 3, random_prompts(NUM_PROMPTS)) == expected


def test_a_layer_keeps_one_latent_a_token(model: LoadedModel, expanded: LoadedModel) -> None:
    """The target's layers and the head's: rank 16 and 8 rotary values, of 4 heads' 40 and 16."""
    assert dict(model.kv_shapes) == dict.fromkeys(range(3), ((1, 16 + 8), (1, 0)))
    value_size = model.target.config.v_head_dim
    assert dict(expanded.kv_shapes) == dict.fromkeys(range(3), ((4, 24), (4, value_size)))
    latent, whole = (speculator(each).cache.num_bytes for each in (model, expanded))
    assert latent * (4 * (24 + value_size)) == whole * 24


@pytest.mark.parametrize("kind", WITHOUT_HEAD)
def test_targets_without_a_head(tmp_path: Path, kind: str) -> None:
    """Their rotary tables or blocks have forms that no head here has."""
    folder = make_checkpoint(tmp_path, kind, seed=3)
    model = load_tiny(folder, with_head=False)
    assert model.keeps_latents
    assert decoded(speculator(model), 0, random_prompts(NUM_PROMPTS)) == reference_tokens(folder)


def test_prefill_is_the_same_whatever_the_chunk(
    folder: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are expanded in chunks of one, of three and one, and all at once."""
    from cgbench.engine.prefill import prefill
    from cgbench.kernels.mla import latent_prefill

    found: list[torch.Tensor] = []
    for chunk in (1, 3, 4):
        monkeypatch.setattr(latent_prefill, "heads_a_chunk", lambda new, chunk=chunk: chunk)
        spec = speculator(model)
        prefilled = prefill(spec, random_prompts(NUM_PROMPTS), 1 << 20)
        assert prefilled.block_out is not None
        found.append(prefilled.block_out)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)
