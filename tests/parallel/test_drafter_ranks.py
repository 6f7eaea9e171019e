"""Two ranks under gloo share EAGLE-3 heads, DFlash drafters, MiMo-V2's target and Step-3.5's."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.models.heads.families import MIMO_V2, STEP
from cgbench.models.heads.head import HeadForm
from cgbench.parallel.launch import run_on_ranks
from cgbench.parallel.ranks import ALONE
from tests.support import dflash, eagle3, rank_jobs
from tests.support.drafter_jobs import Case, Seen, see_all, see_faults
from tests.support.fp8 import make_fp8_checkpoint
from tests.support.rank_jobs import MAX_NEW_TOKENS, PROMPTS, VOCABULARY
from tests.support.tiny import greedy_reference, make_checkpoint, reference_model

EAGLE, EAGLE_WHOLE, EAGLE_SCARCE = "eagle3", "eagle3 whole", "eagle3 scarce"
EAGLE_EXACT, DFLASH_EXACT = "eagle3 exact", "dflash exact"
DFLASH, DFLASH_WHOLE = "dflash", "dflash whole"
MIMO, STEP_3_5, SCALED = "mimo_v2_flash", "step3p5", "mimo_v2_flash fp8"
DRAFTERS = (EAGLE, EAGLE_WHOLE, EAGLE_SCARCE, EAGLE_EXACT, DFLASH, DFLASH_WHOLE, DFLASH_EXACT)
TARGETS = (MIMO, STEP_3_5, SCALED)
ALL = (*DRAFTERS, *TARGETS)
SINKS, VALUES = "self_attn.sinks", "block.self_attn.v_proj.weight"

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
    return {
        EAGLE: Case(eagle, plain, is_compiled=True),
        EAGLE_WHOLE: Case(eagle, biased, "whole"),
        EAGLE_SCARCE: Case(eagle, biased),
        EAGLE_EXACT: Case(*eagle3.make_exact(root / "eagle exact")),
        DFLASH: Case(block, drafter, is_compiled=True),
        DFLASH_WHOLE: Case(block, drafter, "whole"),
        DFLASH_EXACT: Case(*dflash.make_exact(root / "dflash exact")),
        **targets(root),
    }


def targets(root: Path) -> dict[str, Case]:
    """Three modules each, dense ones, beside layers of experts."""
    made: dict[str, Any] = {"num_modules": 3, "vocab_size": VOCABULARY, "seed": 3}
    step = HeadForm(own_output=True, dense=True)
    folders = (
        make_checkpoint(
            root / MIMO, "mimo_v2_flash", family=MIMO_V2, form=HeadForm(dense=True), **made
        ),
        make_checkpoint(root / STEP_3_5, "step3p5", family=STEP, form=step, **made),
        make_fp8_checkpoint(
            root / SCALED,
            "mimo_v2_flash",
            MIMO_V2,
            form=HeadForm(dense=True),
            moe_intermediate_size=24,
            **made,
        )[0],
    )
    return {
        name: Case(folder, is_compiled=name == STEP_3_5, reads_plain=name != SCALED)
        for name, folder in zip(TARGETS, folders, strict=True)
    }


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
        for k in (1, 3):
            assert each[name].told.tokens[f"{rank_jobs.GREEDY[1]} k={k}"] == expected
        if name in TARGETS:
            tokens, noise = each[name].plain or ([], 1.0)
            assert tokens == expected[1] and noise < 1e-4
