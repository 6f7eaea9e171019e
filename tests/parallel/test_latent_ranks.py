"""Two ranks under gloo share latent attention: its heads are divided, its latents whole on both."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from cgbench.errors import BadInputError
from cgbench.models.division.planned_splits import latent_splits
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs
from tests.support.tiny import LATENT_CONFIGS, MORE_CONFIGS

KINDS = ("deepseek_v3", "glm4_moe_lite")
"""transformers' plan divides the second's heads and leaves the first's whole."""
WITHOUT = ("deepseek_v3 whole",)
"""GLM's are tried with both heads."""
ALL = ["deepseek_v3 divided", "glm4_moe_lite divided", "glm4_moe_lite whole"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return rank_jobs.make_folders(tmp_path_factory.mktemp("latent"), KINDS)


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> rank_jobs.Shared:
    (told,) = rank_jobs.tell_all(folders, (), WITHOUT, ranks=ALONE)
    return told


@pytest.fixture(scope="module")
def ranks(folders: dict[str, Path]) -> list[rank_jobs.Shared]:
    return run_on_ranks(2, "cpu", rank_jobs.tell_all, folders, (), WITHOUT)


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_are_one_process(
    name: str, alone: rank_jobs.Shared, ranks: list[rank_jobs.Shared]
) -> None:
    """Tokens, drafts and weights. Each rank keeps one latent a token, as one process does."""
    assert ranks[0].told[name] == ranks[1].told[name] == alone.told[name]
    assert alone.told[name].kv_heads == {1}


def test_compiled_layers_decode_alike(
    alone: rank_jobs.Shared, ranks: list[rank_jobs.Shared]
) -> None:
    traced, other = (each.traced for each in ranks)
    assert traced == other and set(traced) == {"glm4_moe_lite whole"}
    rule = f"{rank_jobs.GREEDY[1]} k=3"
    for name, rows in traced.items():
        assert rows[:3] == alone.told[name].tokens[rule]


def test_heads_are_divided_and_latents_whole(
    alone: rank_jobs.Shared, ranks: list[rank_jobs.Shared]
) -> None:
    for kind in KINDS:
        name = f"{kind} divided"
        assert alone.heads[name] == ({(4, 24)}, 2 * 24)
        assert [each.heads[name] for each in ranks] == 2 * [({(2, 24)}, 2 * 24)]
    # The floor counts what a rank holds.
    for counted, held in (pair for each in ranks for pair in each.work.values()):
        assert (counted.target, counted.lm_head, counted.head) == (
            held.target,
            held.lm_head,
            held.head,
        )


@pytest.mark.parametrize(
    "config",
    [MORE_CONFIGS["deepseek_v3"], LATENT_CONFIGS["deepseek_v3-plain-query"]],
    ids=["low-rank query", "plain query"],
)
def test_ranks_that_do_not_divide_the_heads_are_refused(config: PretrainedConfig) -> None:
    """Eight ranks divide the rows of four heads of 24, and no head may be cut."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(BadInputError, match="--tp 8: does not divide the 4 attention heads"):
        latent_splits(model, 8)
    names = {name.partition("self_attn.")[2] for name in latent_splits(model, 2)}
    query = "q_proj" if config.q_lora_rank is None else "q_b_proj"
    assert names == {f"{each}.weight" for each in (query, "kv_b_proj", "o_proj")}
