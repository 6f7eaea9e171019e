"""What a forward multiplies, read off the modules: nothing left out, nothing twice."""

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from cgbench.floor.work import AttentionShape, ForwardWork, Product, model_work
from cgbench.models.heads.families import MIMO
from cgbench.models.skeleton import make_skeleton
from tests.support.tiny import CONFIGS, HYBRID_CONFIGS, MORE_CONFIGS

TARGETS = CONFIGS | MORE_CONFIGS


def stored(module: nn.Module) -> int:
    """Elements of all matrices; a router's correction of the scores is none."""
    named = module.named_parameters()
    # Experts' biases are matrices too, of an expert each row.
    left_out = ("correction", "bias")
    return sum(
        p.numel() for name, p in named if p.dim() > 1 and not any(word in name for word in left_out)
    )


def multiplied(work: ForwardWork) -> int:
    return sum(product.num_elements * product.num_experts for product in work.products)


@pytest.mark.parametrize("config", TARGETS.values(), ids=TARGETS)
def test_every_matrix_is_multiplied_once_and_the_embedding_looked_up(
    config: PretrainedConfig,
) -> None:
    skeleton = make_skeleton(config, MIMO)
    work = model_work(skeleton)
    target, head = skeleton.target, skeleton.head
    assert head is not None and work.modules
    embedding = target.model.get_input_embeddings().weight
    assert multiplied(work.target) == stored(target.backbone) - embedding.numel()
    assert multiplied(work.lm_head) == target.vocab_size * target.hidden_size
    assert multiplied(work.modules[0].forward) == stored(head)
    assert (
        work.target.embedding_elements
        == work.modules[0].forward.embedding_elements
        == target.hidden_size
    )
    assert len(work.target.attentions) == target.num_layers
    assert len(work.modules[0].forward.attentions) == 1 and work.lm_head.attentions == ()


def test_products_have_one_name_in_every_layer_and_in_the_head() -> None:
    work = model_work(make_skeleton(CONFIGS["qwen2"], MIMO))
    assert work.modules
    of_layer = {
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    }
    assert Counter(p.name for p in work.target.products) == dict.fromkeys(of_layer, 2)
    assert {p.name for p in work.modules[0].forward.products} == of_layer | {"proj"}
    assert work.lm_head.products == (Product("lm_head", 64 * 32, 1, 1),)


def test_a_token_brings_a_row_to_each_expert_that_it_chooses() -> None:
    work = model_work(make_skeleton(MORE_CONFIGS["glm4_moe"], MIMO))
    experts = [p for p in work.target.products if "experts." in p.name and "shared" not in p.name]
    assert experts == [
        Product("mlp.experts.gate_up_proj", 2 * 16 * 32, 8, 2),
        Product("mlp.experts.down_proj", 32 * 16, 8, 2),
    ]
    router = next(p for p in work.target.products if p.name == "mlp.gate")
    assert (router.num_elements, router.num_experts, router.num_rows) == (8 * 32, 1, 1)


def test_attention_is_as_the_layers_call_it() -> None:
    windowed = model_work(make_skeleton(MORE_CONFIGS["gemma3_text"], MIMO))
    assert windowed.target.attentions == (
        AttentionShape(4, 2, 16, 16, 9),
        AttentionShape(4, 2, 16, 16, None),
    )
    config = MORE_CONFIGS["deepseek_v3"]
    expanded = model_work(make_skeleton(config, MIMO, keeps_latents=False))
    assert set(expanded.target.attentions) == {AttentionShape(4, 4, 24, 16, None)}


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe_lite"])
def test_latent_attention_reads_one_row_a_token_and_multiplies_the_same_weights(kind: str) -> None:
    """Of 4 heads: a latent of 16 and a rotary key of 8, the latent again as the value."""
    latent, expanded = (
        model_work(make_skeleton(MORE_CONFIGS[kind], MIMO, keeps_latents=keeps))
        for keeps in (True, False)
    )
    shape = AttentionShape(4, 1, 16 + 8, 16, None, is_latent=True)
    heads = latent.modules[0].forward, expanded.modules[0].forward
    for work, other in ((latent.target, expanded.target), heads):
        assert set(work.attentions) == {shape}
        assert Counter(work.products) == Counter(other.products)
    assert shape.row_elements == 24


def test_a_hybrids_linear_layers_have_a_state_each_and_its_head_none() -> None:
    skeleton = make_skeleton(HYBRID_CONFIGS["qwen3_next-hybrid"], MIMO)
    work = model_work(skeleton)
    assert work.modules and work.modules[0].forward.states == ()
    assert len(work.target.attentions) + len(work.target.states) == skeleton.target.num_layers
    assert work.target.states == tuple(skeleton.kv.state_shapes.values()) != ()


def test_the_models_modules_are_left_as_they_were() -> None:
    skeleton = make_skeleton(CONFIGS["llama"], MIMO)
    before = torch.get_default_device()
    assert model_work(skeleton) == model_work(skeleton)
    assert torch.get_default_device() == before
