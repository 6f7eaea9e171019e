"""Two ranks under gloo are one process: its tokens, its acceptance, its weights."""

from pathlib import Path
from typing import Any

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
def shared_with_none(folders: dict[str, Path]) -> rank_jobs.Shared:
    return rank_jobs.tell_all(folders, PRESETS, WITHOUT, ranks=ALONE)[0]


@pytest.fixture
def alone(shared_with_none: rank_jobs.Shared) -> dict[str, rank_jobs.Told]:
    return shared_with_none.told


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path]) -> tuple[Any, Any]:
    """Of both jobs, in one start."""
    tell = rank_jobs.tell_all, (folders, PRESETS, WITHOUT)
    look = rank_jobs.look_at_collectives, (folders[DENSE],)
    return tuple(run_on_ranks(2, "cpu", rank_jobs.in_turn, tell, look))


@pytest.fixture
def ranks(answers: tuple[Any, Any]) -> list[dict[str, rank_jobs.Told]]:
    return [each.told for each in answers[0]]


WITHOUT = (f"{EXPERTS} whole",)
"""A mixture's whole head is tried with latent attention."""
MODELS = [
    name
    for kind in (DENSE, EXPERTS, rank_jobs.OWN)
    for name in (f"{kind} divided", f"{kind} whole")
    if name not in WITHOUT
]
ALL = [*MODELS, *(preset.name for preset in PRESETS)]


@pytest.mark.parametrize("name", ALL)
def test_tokens_are_one_process_s(
    name: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    """Greedy and sampled, k 1 and 3, unequal prompts, in batches of two and three."""
    assert ranks[0][name].tokens == alone[name].tokens


@pytest.mark.parametrize("name", ALL)
def test_every_rank_decides_alike(name: str, ranks: list[dict[str, rank_jobs.Told]]) -> None:
    assert ranks[0][name].tokens == ranks[1][name].tokens
    assert ranks[0][name].accepted == ranks[1][name].accepted


@pytest.mark.parametrize("name", ALL)
def test_drafts_are_one_process_s(
    name: str, alone: dict[str, rank_jobs.Told], ranks: list[dict[str, rank_jobs.Told]]
) -> None:
    """Lossless decoding hides a wrong draft."""
    assert ranks[0][name].drafts == ranks[1][name].drafts == alone[name].drafts
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
    if f"{kind} whole" not in WITHOUT:
        assert ranks[0][f"{kind} whole"].kv_heads == {1, 2}


@pytest.mark.parametrize("name", MODELS)
def test_the_floor_is_of_what_a_rank_holds(
    name: str, shared_with_none: rank_jobs.Shared, answers: tuple[Any, Any]
) -> None:
    whole, _ = shared_with_none.work[name]
    for each in answers[0]:
        counted, held = each.work[name]
        assert counted == held
        assert counted.target < whole.target and 2 * counted.lm_head == whole.lm_head
        # An output matrix of the head's own is divided as the lm_head is, always.
        divided = name.endswith("divided") or name.startswith(rank_jobs.OWN)
        assert (counted.head < whole.head) == divided


def test_no_logits_cross_the_ranks_for_an_argmax(answers: tuple[Any, Any]) -> None:
    _, seen = answers
    assert seen["kinds"] == {"all_reduce", "all_gather"}
    assert {shape[-1] for shape in seen["gathered"]} == {2}
    # Among equals the lowest index, as torch.argmax.
    assert seen["argmax"] == [[1, 0, 3]] * 2
    assert seen["agreed"] == ["rank 0's"] * 2


def test_compiled_layers_decode_alike(
    answers: tuple[Any, Any], alone: dict[str, rank_jobs.Told]
) -> None:
    """Sums over the ranks are operators of a compiled layer: of products, and of experts. Dense
    layers beside plain ones are tried with FP8 keys and values."""
    traced, other = (each.traced for each in answers[0])
    assert traced == other and set(traced) == {f"{EXPERTS} divided"}
    rule = f"{rank_jobs.GREEDY[1]} k=3"
    for name, rows in traced.items():
        assert rows[:3] == alone[name].tokens[rule]
