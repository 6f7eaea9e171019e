"""Two ranks under gloo are one process: its tokens, its acceptance, its weights."""

from pathlib import Path

import pytest

from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import rank_jobs

PRESETS = (rank_jobs.TIED, rank_jobs.WHOLE_VOCABULARY)
DENSE, EXPERTS = "mimo", "glm4_moe"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return rank_jobs.make_folders(
        tmp_path_factory.mktemp("models"), (DENSE, EXPERTS, rank_jobs.OWN)
    )


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, rank_jobs.Told]:
    return rank_jobs.tell_all(folders, PRESETS, ranks=ALONE)[0]


@pytest.fixture(scope="module")
def ranks(folders: dict[str, Path]) -> list[dict[str, rank_jobs.Told]]:
    return run_on_ranks(2, "cpu", rank_jobs.tell_all, folders, PRESETS)


MODELS = [
    f"{kind} {head}" for kind in (DENSE, EXPERTS, rank_jobs.OWN) for head in ("divided", "whole")
]
ALL = [*MODELS, *(preset.name for preset in PRESETS)]


@pytest.mark.parametrize("name", ALL)
def test_tokens_are_one_process_s(
    name: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    """Greedy and sampled, k 1 and 3, unequal prompts, in batches that are re-packed."""
    assert ranks[0][name].tokens == alone[name].tokens


@pytest.mark.parametrize("name", ALL)
def test_every_rank_decides_alike(name: str, ranks: list[dict[str, rank_jobs.Told]]) -> None:
    assert ranks[0][name].tokens == ranks[1][name].tokens
    assert ranks[0][name].accepted == ranks[1][name].accepted


@pytest.mark.parametrize("name", ALL)
def test_drafts_are_one_process_s(
    name: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    """Lossless decoding hides a wrong draft; acceptance does not."""
    assert ranks[0][name].accepted == alone[name].accepted


@pytest.mark.parametrize("name", ALL)
def test_the_parts_are_the_whole_model_s(
    name: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    """Checkpoints read by part, and presets drawn by part from the same seed."""
    assert ranks[0][name].fingerprint == ranks[1][name].fingerprint == alone[name].fingerprint


@pytest.mark.parametrize("kind", [DENSE, EXPERTS])
def test_a_slot_holds_the_rank_s_own_heads(
    kind: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    assert alone[f"{kind} divided"].kv_heads == {2}
    assert ranks[0][f"{kind} divided"].kv_heads == {1}
    assert ranks[0][f"{kind} whole"].kv_heads == {1, 2}


def test_no_logits_cross_the_ranks_for_an_argmax(folders: dict[str, Path]) -> None:
    seen = run_on_ranks(2, "cpu", rank_jobs.look_at_collectives, folders[DENSE])
    assert seen["kinds"] == {"all_reduce", "all_gather"}
    assert {shape[-1] for shape in seen["gathered"]} == {2}
    # Among equals the lowest index, as torch.argmax.
    assert seen["argmax"] == [[1, 0, 3]] * 2
    assert seen["agreed"] == ["rank 0's"] * 2


def test_compiled_layers_decode_alike(
    folders: dict[str, Path], alone: dict[str, rank_jobs.Told]
) -> None:
    """Sums over the ranks are operators of a compiled layer: of products, and of experts."""
    told = run_on_ranks(2, "cpu", rank_jobs.tell_compiled, folders)
    assert told[0] == told[1]
    rule = f"{rank_jobs.RULES[0][1]} k=3"
    assert len(told[0]) == len(rank_jobs.COMPILED)
    for name, decoded in told[0].items():
        assert decoded == alone[name].tokens[rule][:3] + alone[name].accepted[rule][:3]
