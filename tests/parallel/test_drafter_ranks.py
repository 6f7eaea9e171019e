"""Two ranks under gloo share EAGLE-3 heads, DFlash drafters, MiMo-V2's target and Step-3.5's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from cgbench.errors import BadInputError, UnsupportedModelError
from cgbench.models.division.division_check import check_division
from cgbench.models.division.planned_splits import check_plan
from cgbench.models.heads.families import MIMO_V2, STEP
from cgbench.models.heads.head import HeadForm
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE, Ranks
from tests.support import dflash, eagle3, rank_jobs
from tests.support.drafter_jobs import GREEDILY, Case, Seen, see_all, see_faults
from tests.support.fp8 import make_fp8_checkpoint
from tests.support.rank_jobs import GREEDY, MAX_NEW_TOKENS, PROMPTS, VOCABULARY
from tests.support.tiny import (
    SHAPE,
    edit_config,
    greedy_reference,
    make_checkpoint,
    reference_model,
)

EAGLE, EAGLE_WHOLE, EAGLE_SCARCE = "eagle3", "eagle3 whole", "eagle3 scarce"
EAGLE_EXACT = "eagle3 exact"
DFLASH, DFLASH_WHOLE = "dflash", "dflash whole"
MIMO, STEP_3_5, SCALED = "mimo_v2_flash", "step3p5", "mimo_v2_flash fp8"
DRAFTERS = (EAGLE, EAGLE_WHOLE, EAGLE_SCARCE, EAGLE_EXACT, DFLASH, DFLASH_WHOLE)
TARGETS = (MIMO, STEP_3_5, SCALED)
ALL = (*DRAFTERS, *TARGETS)
SINKS, VALUES = "self_attn.sinks", "block.self_attn.v_proj.weight"

DRAWN = (*GREEDILY, rank_jobs.SAMPLED)
Told = list[dict[str, Seen]]
Faults = list[dict[str, rank_jobs.Told]]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("drafters")
    eagle = eagle3.make_target(root / "eagle")
    block = dflash.make_target(root / "block")
    plain, biased = (
        eagle3.make_head_folder(root / each.name, each, eagle)
        for each in (eagle3.SAFEAILAB, eagle3.SPECULATORS_3)
    )
    drafter = dflash.make_drafter(root / "drafter", dflash.MIXED)
    ranked = root / "ranked.json"
    ranked.write_text(json.dumps([*range(63, 1, -3), 5, 7, 11]))
    return {
        EAGLE: Case(eagle, plain, rules=DRAWN, compiled=1),
        EAGLE_WHOLE: Case(eagle, biased, "whole", rules=(GREEDY,)),
        EAGLE_SCARCE: Case(eagle, biased, rules=(GREEDY,)),
        EAGLE_EXACT: Case(*even_exact(root / "eagle exact"), rules=(GREEDY,)),
        DFLASH: Case(block, drafter, rules=DRAWN),
        DFLASH_WHOLE: Case(block, drafter, "whole", ranked, rules=(GREEDY,)),
        **targets(root),
    }


def even_exact(folder: Path) -> tuple[Path, Path]:
    """The exact EAGLE-3 checkpoint without its last draft token, so that two ranks divide them."""
    target, head = eagle3.make_exact(folder)
    tensors = eagle3.read_head(head)
    for name in ("lm_head.weight", "d2t"):
        tensors[name] = tensors[name][: eagle3.LIVE]
    eagle3.write_head(head, tensors)
    edit_config(head, draft_vocab_size=eagle3.LIVE)
    return target, head


def targets(root: Path) -> dict[str, Case]:
    """Three modules each, dense ones, beside layers of experts."""
    made: dict[str, Any] = {"num_modules": 3, "vocab_size": VOCABULARY, "seed": 3}
    own = HeadForm(own_output=True, dense=True)
    mimo, step, scaled = (
        make_checkpoint(
            root / MIMO, "mimo_v2_flash", family=MIMO_V2, form=HeadForm(dense=True), **made
        ),
        make_checkpoint(root / STEP_3_5, "step3p5", family=STEP, form=own, **made),
        make_fp8_checkpoint(
            root / SCALED,
            "mimo_v2_flash",
            MIMO_V2,
            form=HeadForm(dense=True),
            moe_intermediate_size=24,
            **made,
        )[0],
    )
    spread_sinks(mimo)
    return {
        MIMO: Case(mimo, reads_plain=True),
        STEP_3_5: Case(step, compiled=1, reads_plain=True),
        SCALED: Case(scaled, rules=(GREEDY,)),
    }


def spread_sinks(folder: Path) -> None:
    """Give each head's sink a value far from the others', in the target and in the modules."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    sinks = {name for name in tensors if name.endswith("sinks") or "sink_bias" in name}
    assert len(sinks) == 1 + 3
    spread = {name: torch.linspace(4, -4, len(tensors[name])) for name in sinks}
    save_file(tensors | spread, file, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def alone(cases: dict[str, Case]) -> dict[str, Seen]:
    return see_all(cases, ranks=ALONE)[0]


@pytest.fixture(scope="module")
def answers(cases: dict[str, Case]) -> list[Any]:
    """Of both jobs, in one start."""
    faulty = {SINKS: cases[MIMO], VALUES: cases[EAGLE]}
    jobs = (see_all, (cases,)), (see_faults, (faulty,))
    return run_on_ranks(2, "cpu", rank_jobs.in_turn, *jobs)


@pytest.fixture(scope="module")
def ranks(answers: list[Any]) -> Told:
    told: Told = answers[0]
    return told


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_are_one_process(name: str, alone: dict[str, Seen], ranks: Told) -> None:
    """Tokens, acceptance, every draft and all weights, greedily and drawn."""
    for each in ranks:
        assert each[name].told.tokens == alone[name].told.tokens
        assert each[name].told.drafts == alone[name].told.drafts
        assert each[name].told.accepted == alone[name].told.accepted
        assert each[name].told.fingerprint == alone[name].told.fingerprint
        assert each[name].reference == alone[name].reference


@pytest.mark.parametrize("name", [*DRAFTERS, MIMO, STEP_3_5])
def test_two_ranks_decode_plain_greedy_tokens(
    name: str, cases: dict[str, Case], ranks: Told
) -> None:
    model = reference_model(cases[name].target)
    expected = greedy_reference(model, PROMPTS[:3], MAX_NEW_TOKENS)
    for each in ranks:
        greedily = [key for key in each[name].told.tokens if key.startswith(str(GREEDY[1]))]
        assert f"{GREEDY[1]} k=3" in greedily
        for key in greedily:
            assert each[name].told.tokens[key] == expected
        if name in TARGETS:
            tokens, noise = each[name].plain or ([], 1.0)
            assert tokens == expected[1] and noise < 1e-4


def test_a_head_that_is_right_has_every_draft_kept_on_ranks_too(ranks: Told) -> None:
    """Each prompt's first tokens are none of the circle that the head knows."""
    for each in ranks:
        accepted = each[EAGLE_EXACT].told.accepted[f"{GREEDY[1]} k=3"]
        assert [counts[-1] for counts in accepted] == [3, 3, 3]


@pytest.mark.parametrize("name", ALL)
def test_the_floor_counts_what_a_rank_holds(name: str, alone: dict[str, Seen], ranks: Told) -> None:
    whole = alone[name].counted
    for each in ranks:
        seen = each[name]
        assert seen.counted == seen.held
        assert 2 * seen.counted.lm_head == whole.lm_head
        assert seen.counted.target < whole.target
        # An output matrix beside a whole block is divided all the same.
        assert seen.counted.head < whole.head
        assert set(seen.counted.kv_heads) == {1}


@pytest.mark.parametrize(
    ("name", "target_layers", "head_layers", "forwards"),
    [
        (EAGLE, 8, 1, 3),
        (EAGLE_WHOLE, 8, 0, 3),
        (DFLASH, 4, 3, 1),
        (DFLASH_WHOLE, 4, 0, 1),
        (MIMO, 3, 1, 3),
    ],
)
def test_what_crosses_the_ranks_in_an_iteration(
    name: str, target_layers: int, head_layers: int, forwards: int, ranks: Told
) -> None:
    """Two sums a layer and an argmax a forward, in one order on every rank. A whole head adds its
    argmax alone, because it draws from a vocabulary that is divided."""
    pair, argmax = ["all_reduce"] * 2, ["all_gather"]
    for each in ranks:
        for k in (1, 3):
            drafts = pair * head_layers + argmax
            expected = pair * target_layers + argmax + drafts * min(k, forwards)
            assert each[name].collectives[k] == expected


@pytest.mark.parametrize("name", [EAGLE, STEP_3_5])
def test_compiled_layers_decode_alike(name: str, alone: dict[str, Seen], ranks: Told) -> None:
    tokens = alone[name].told.tokens[f"{GREEDY[1]} k=1"]
    for each in ranks:
        assert (each[name].compiled or [])[:3] == tokens


@pytest.mark.parametrize(("ending", "name"), [(SINKS, MIMO), (VALUES, EAGLE)])
def test_a_part_of_another_rank_shows(
    ending: str, name: str, alone: dict[str, Seen], answers: list[Any]
) -> None:
    """In the fingerprint and in the drafts. The text shows nothing that is wrong in a head."""
    faulty: Faults = answers[1]
    sound, key = alone[name].told, f"{GREEDY[1]} k=3"
    for each in faulty:
        told = each[ending]
        assert told.fingerprint != sound.fingerprint
        assert told.drafts[key] != sound.drafts[key]
        assert name == MIMO or told.tokens[key] == sound.tokens[key]


def check_ranks(target: Path, head: Path, num_ranks: int, *, divided: bool = True) -> None:
    where = torch.device("cpu"), torch.float32
    ranks = Ranks(0, num_ranks)
    loading = Loading(str(target), str(head), True, *where, divided_head=divided, ranks=ranks)
    check_division(plan_loading(loading))


@pytest.mark.parametrize(
    ("layout", "field", "words"),
    [
        (eagle3.SPECULATORS_3, {}, "the 2 attention heads of the EAGLE-3 head"),
        (eagle3.VLLM, {"num_key_value_heads": 3, "num_attention_heads": 12}, "the 3 key-value"),
        (eagle3.SAFEAILAB, {"intermediate_size": 42}, "the 42 features of the MLP"),
    ],
)
def test_drafter_layers_that_the_ranks_do_not_divide_may_be_whole(
    layout: eagle3.Layout, field: dict[str, int], words: str, tmp_path: Path
) -> None:
    target = eagle3.make_target(tmp_path / "target")
    odd = replace(layout, layer={**layout.layer, **field})
    head = eagle3.make_head_folder(tmp_path / "head", odd, target)
    with pytest.raises(BadInputError, match=f"--tp 4: does not divide {words}.*--tp-head whole"):
        check_ranks(target, head, 4)
    check_ranks(target, head, 4, divided=False)


def test_a_drafter_s_layers_that_the_ranks_do_not_divide(tmp_path: Path) -> None:
    target = dflash.make_target(tmp_path / "target")
    drafter = dflash.make_drafter(tmp_path / "drafter", dflash.MIXED)
    with pytest.raises(BadInputError, match="the 2 attention heads of the DFlash drafter"):
        check_ranks(target, drafter, 4)
    check_ranks(target, drafter, 4, divided=False)


@pytest.mark.parametrize("divided", [True, False])
def test_draft_tokens_that_the_ranks_do_not_divide(divided: bool, tmp_path: Path) -> None:
    folders = eagle3.make_exact(tmp_path)
    words = "--tp 2: divides the target's 64 tokens, and not the 33 that the EAGLE-3 head drafts"
    with pytest.raises(BadInputError, match=words):
        check_ranks(*folders, 2, divided=divided)


def test_heads_that_are_normed_together_are_refused_by_their_style() -> None:
    """Step's plan puts heads together too, and its norms are of each head apart."""
    config = AutoConfig.for_model("olmo2", **SHAPE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UnsupportedModelError, match="style 'rowwise_split_input'"):
        check_plan(model)
