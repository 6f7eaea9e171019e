"""Rules of transformers' routers, found by trying them: at the sizes of real models too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.ernie4_5_moe.modeling_ernie4_5_moe import Ernie4_5_MoeTopKRouter
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssTopKRouter
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeTopKRouter
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextTopKRouter

from cgbench.compile.layers import compile_forwards
from cgbench.kernels.moe.router_rule import RouterRule
from cgbench.models.router_rules import (
    OWN_PATH,
    is_plain_mixture,
    mixture_paths,
    router_rule,
)
from tests.support.mixtures import operators_alone
from tests.support.tiny import load_tiny, make_checkpoint

SIZES = {"num_experts_per_tok": 4, "num_experts": 32}
ROUTED = {"num_experts_per_tok": 4, "n_routed_experts": 32}
NORMED = RouterRule(top_k=4, renormalises=True)
SIGMOID = RouterRule(
    top_k=4,
    is_sigmoid=True,
    wide_logits=True,
    renormalises=True,
    added_to_sum=1e-20,
    wide_weights=True,
)
DEEPSEEK = RouterRule(
    top_k=4,
    is_sigmoid=True,
    wide_logits=True,
    num_groups=8,
    top_groups=4,
    renormalises=True,
    added_to_sum=1e-20,
    scaling=2.5,
    wide_weights=True,
)
ROUTERS: list[tuple[type[nn.Module], str, dict[str, Any], RouterRule]] = [
    (Qwen3MoeTopKRouter, "qwen3_moe", SIZES | {"norm_topk_prob": True}, NORMED),
    (Qwen3MoeTopKRouter, "qwen3_moe", SIZES | {"norm_topk_prob": False}, RouterRule(top_k=4)),
    (Qwen3NextTopKRouter, "qwen3_next", SIZES | {"norm_topk_prob": True}, NORMED),
    (Qwen3_5MoeTopKRouter, "qwen3_5_moe_text", SIZES, NORMED),
    (Glm4MoeTopkRouter, "glm4_moe", ROUTED | {"n_group": 1, "topk_group": 1}, SIGMOID),
    (
        DeepseekV3TopkRouter,
        "deepseek_v3",
        ROUTED | {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5},
        DEEPSEEK,
    ),
    (
        Ernie4_5_MoeTopKRouter,
        "ernie4_5_moe",
        {"moe_k": 4, "moe_num_experts": 32},
        RouterRule(top_k=4, wide_logits=True, renormalises=True, least_sum=1e-12),
    ),
]


def make_router(kind: type[nn.Module], model_type: str, hidden: int, fields: Any) -> nn.Module:
    return kind(AutoConfig.for_model(model_type, hidden_size=hidden, **fields))


@pytest.mark.parametrize("hidden", [32, 2048])
@pytest.mark.parametrize(("kind", "model_type", "fields", "rule"), ROUTERS)
def test_the_rule_is_the_routers_own(
    kind: type[nn.Module], model_type: str, fields: dict[str, Any], rule: RouterRule, hidden: int
) -> None:
    """Of many inputs too, where logits that nobody scaled would saturate every score."""
    assert router_rule(make_router(kind, model_type, hidden, fields)) == rule


class ToldOtherLogits(Qwen3MoeTopKRouter):
    """Chooses by rounded logits, and returns wide ones, as some versions of transformers do."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, chosen = super().forward(hidden_states)
        return logits.float().softmax(-1), weights, chosen


class DoublesWeights(Qwen3MoeTopKRouter):
    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, chosen = super().forward(hidden_states)
        return logits, 2 * weights, chosen


class RoundsScores(Qwen3MoeTopKRouter):
    """As no rule does below float32: the scores themselves are rounded."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden_states, self.weight)
        weights, chosen = logits.softmax(-1).topk(self.top_k)
        return logits, weights / weights.sum(-1, keepdim=True), chosen


class NamesItsBiasOtherwise(Qwen3MoeTopKRouter):
    """The bias counts for the choice, under a name that ``correction_bias`` does not read."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.expert_bias = nn.Buffer(torch.zeros(config.num_experts))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden_states, self.weight)
        scores = logits.softmax(-1, dtype=torch.float)
        chosen = (scores + self.expert_bias).topk(self.top_k).indices
        weights = scores.gather(1, chosen)
        return logits, (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), chosen


NORMED_QWEN = "qwen3_moe", 64, SIZES | {"norm_topk_prob": True}


def test_logits_that_a_router_returns_are_no_evidence() -> None:
    assert router_rule(make_router(ToldOtherLogits, *NORMED_QWEN)) == NORMED


@pytest.mark.parametrize("kind", [DoublesWeights, RoundsScores, NamesItsBiasOtherwise])
def test_another_router_has_no_rule(kind: type[nn.Module]) -> None:
    assert router_rule(make_router(kind, *NORMED_QWEN)) is None


def test_a_router_with_biased_logits_has_no_rule() -> None:
    fields = {"num_local_experts": 8, "num_experts_per_tok": 2}
    assert router_rule(make_router(GptOssTopKRouter, "gpt_oss", 32, fields)) is None


def make_experts(**changes: Any) -> nn.Module:
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=32, moe_intermediate_size=16, **SIZES, **changes
    )
    return Qwen3MoeExperts(config)


def test_gated_experts_are_plain() -> None:
    assert is_plain_mixture(make_experts())


def test_other_experts_are_not() -> None:
    """Biases, clamped activations, transposed weights, another activation."""
    config = AutoConfig.for_model(
        "gpt_oss", hidden_size=32, intermediate_size=16, num_local_experts=8
    )
    assert not is_plain_mixture(GptOssExperts(config))
    assert not is_plain_mixture(make_experts(hidden_act="gelu"))
    for name in ("has_bias", "is_transposed", "has_post_expert_norm", "_is_expert_parallel"):
        experts = make_experts()
        setattr(experts, name, True)
        assert not is_plain_mixture(experts), name


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("qwen3_moe", (OWN_PATH, OWN_PATH, None)),
        ("glm4_moe_lite", (OWN_PATH, OWN_PATH, OWN_PATH)),
        ("hy_v3", (OWN_PATH, "transformers", "products")),
        ("mimo", None),
    ],
)
def test_the_paths_are_those_that_run(
    tmp_path: Path, kind: str, paths: tuple[str, str, str | None] | None
) -> None:
    """hy_v3's router is handed its correction from outside."""
    model = load_tiny(make_checkpoint(tmp_path, kind))
    before = paths and ("grouped_mm", "transformers", paths[2] and "products")
    assert mixture_paths(model.target, model.head) == before
    with operators_alone():
        compile_forwards(model.target, model.head)
    assert mixture_paths(model.target, model.head) == paths


class Clamps(Qwen3MoeExperts):
    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return nn.functional.silu(gate.clamp(max=7.0)) * up.clamp(-7.0, 7.0)


def test_a_clamped_activation_is_no_plain_one() -> None:
    config = AutoConfig.for_model("qwen3_moe", hidden_size=32, moe_intermediate_size=16, **SIZES)
    assert not is_plain_mixture(Clamps(config))
