"""DFlash drafters: all drafts by one forward, over a context of the target's states."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cgbench.checks import drafts, hidden
from cgbench.checks.findings import Answer
from cgbench.checks.subject import Subject
from cgbench.engine import block_drafts
from cgbench.engine.acceptance import Sampled
from cgbench.engine.backends import sdpa_decode
from cgbench.engine.forwards import planned_forwards, watched_forwards
from cgbench.engine.generation import generate
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.dflash_head import DFlashHead
from cgbench.planning import Bucket
from cgbench.request.choices import KvDtype
from cgbench.words import Phase
from tests.support.audited import FEW_SIZES, make_tiny_subject, run_checks
from tests.support.aux_runs import (
    MAX_NEW_TOKENS,
    check_drafts,
    check_padding,
    check_tokens,
    prompts,
    speculator,
)
from tests.support.dflash import (
    FORMS,
    FULL,
    MIXED,
    WINDOWS,
    Form,
    circling,
    make_drafter,
    make_exact,
    make_target,
)
from tests.support.dflash_reference import PlainDrafter
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_speculator,
    make_state,
    reference_model,
)

by_name = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target") / "llama")


@pytest.fixture(scope="module")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drafters")
    return {each.name: make_drafter(folder / each.name, each) for each in FORMS}


@pytest.fixture(scope="module")
def reference(target: Path) -> PreTrainedModel:
    return reference_model(target)


@pytest.fixture(scope="module")
def expected(reference: PreTrainedModel) -> list[list[int]]:
    return greedy_reference(reference, prompts(), MAX_NEW_TOKENS)


@by_name
def test_tokens_are_plain_greedys(
    target: Path, drafters: dict[str, Path], expected: list[list[int]], form: Form
) -> None:
    check_tokens(speculator(target, drafters[form.name]), expected)


@pytest.mark.parametrize(
    ("form", "k"),
    [(FULL, 1), (MIXED, 3), (WINDOWS, 5)],
    ids=lambda value: getattr(value, "name", value),
)
def test_drafts_are_those_of_a_plain_implementation(
    target: Path,
    drafters: dict[str, Path],
    reference: PreTrainedModel,
    expected: list[list[int]],
    form: Form,
    k: int,
) -> None:
    plain = PlainDrafter(form, drafters[form.name], reference)
    check_drafts(speculator(target, drafters[form.name]), plain, expected, k)


def test_padded_rows_change_nothing(target: Path, drafters: dict[str, Path]) -> None:
    check_padding(speculator(target, drafters["mixed"]))


def test_a_finished_request_stays_inside_the_cache(
    target: Path, drafters: dict[str, Path], expected: list[list[int]]
) -> None:
    """Its block would end past the last slot's room, if every draft of the last verify is kept."""
    model = load_tiny(target, head=drafters["full"])
    prompt = prompts()[2]
    tokens = expected[2][:9]
    k, most = 3, 5
    spec = make_speculator(model, max_batch_size=1, room=len(prompt) + most + 2 * k)
    state = make_state(spec, k, 1)
    prefilled = prefill(spec, [prompt], max_num_tokens=50)
    begin_decoding(spec, state, prefilled, tokens_left=most - 1)
    made = prefilled.last.tolist()
    for _ in range(3):
        state.full.drafts[0] = torch.tensor(tokens[len(made) : len(made) + k])
        iteration(spec, state.full)
        made += state.full.out[0, : int(state.full.num_emitted[0])].tolist()
    assert made == tokens[:most] and not state.full.active.any()


KEPT = TemporaryDirectory(prefix="cgbench-dflash-")
"""Of this process. It is gone when that ends."""


@cache
def exact_folders() -> tuple[Path, Path]:
    return make_exact(Path(KEPT.name))


def exact(k: int, change: Callable[[Speculator], None] | None = None) -> float:
    """The mean acceptance length of the exact drafter, whose text is checked on the way."""
    spec = speculator(*exact_folders())
    if change is not None:
        change(spec)
    starting = [circling(start, length) for start, length in ((3, 8), (9, 13), (24, 20))]
    prefilled = prefill(spec, starting, max_num_tokens=64)
    state = make_state(spec, k, 3)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS)
    got = generate(EagerRunner(spec, state), prefilled.last.tolist())
    for prompt, tokens in zip(starting, got.token_ids, strict=True):
        assert [*prompt, *tokens] == circling(prompt[0], len(prompt) + len(tokens))
    accepted = [count for counts in got.accepted for count in counts]
    return 1 + sum(accepted) / len(accepted)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_drafter_that_is_right_has_every_draft_kept(k: int) -> None:
    assert exact(k) == k + 1


def drafter_of(spec: Speculator) -> DFlashHead:
    assert isinstance(spec.head, DFlashHead)
    return spec.head


def moved_context(spec: Speculator) -> None:
    """Context rows are rotated as if they were one position further on."""
    head = drafter_of(spec)
    right = head.keep_context

    def keep(states: Tensor, rope: tuple[Tensor, Tensor], call: Any) -> None:
        right(states, head.rope(spec.target, states, call.rows.positions + 1), call)

    head.keep_context = keep  # type: ignore[method-assign]


def stale_context(spec: Speculator) -> None:
    """The context ends where prefill ended: no row of a verify joins it."""
    head = drafter_of(spec)
    right = head.keep_context

    def keep(states: Tensor, rope: tuple[Tensor, Tensor], call: Any) -> None:
        right(states if hasattr(call, "lengths") else torch.ones_like(states), rope, call)

    head.keep_context = keep  # type: ignore[method-assign]


@pytest.mark.parametrize(("change", "length"), [(moved_context, 1.0), (stale_context, None)])
def test_a_wrong_context_has_fewer_drafts_kept(
    change: Callable[[Speculator], None], length: float | None
) -> None:
    got = exact(3, change)
    assert got == length if length is not None else 1.0 < got < 3.0


def test_sampled_drafts_have_a_distribution(target: Path, drafters: dict[str, Path]) -> None:
    spec = speculator(target, drafters["full"], accept=Sampled())
    prefilled = prefill(spec, prompts(), max_num_tokens=50)
    state = make_state(spec, 3, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    iteration(spec, state.full)
    probs = state.full.draft_probs[:5, :3]
    assert torch.allclose(probs.sum(-1), torch.ones(5, 3))
    assert (probs.gather(2, state.full.drafts[..., None]) > 0).all()


def test_the_audit_passes(target: Path, drafters: dict[str, Path]) -> None:
    how: dict[str, Any] = {"spec_tokens": (3,), "batch_sizes": FEW_SIZES}
    subject = make_tiny_subject(target, head=drafters["mixed"], with_graphs=True, **how)
    findings = run_checks(subject)
    assert {finding.answer for finding in findings} == {Answer.HOLDS}


def test_the_audit_passes_with_an_fp8_cache(target: Path, drafters: dict[str, Path]) -> None:
    how: dict[str, Any] = {"spec_tokens": (3,), "batch_sizes": FEW_SIZES}
    head = drafters["mixed"]
    subject = make_tiny_subject(target, head=head, kv_dtype=KvDtype.FP8, **how)
    assert {drafts.run(subject).answer, hidden.run(subject).answer} == {Answer.HOLDS}


def causal(subject: Subject) -> Subject:
    """The engine's block is causal, and the reference's is not."""

    def backend(kv: Any, rows: Any, qkv: Any) -> Tensor:
        return sdpa_decode(kv, rows, qkv._replace(is_causal=True))

    return with_spec(subject, backend=backend)


def with_spec(subject: Subject, **changes: Any) -> Subject:
    spec = replace(subject.spec, **changes)
    runners = {key: EagerRunner(spec, each.state) for key, each in subject.runners.items()}
    return replace(subject, spec=spec, runners=runners)


def decoded_one_further(subject: Subject) -> Subject:
    """Context rows that verify makes are rotated one position too far, those of prefill rightly."""
    head = drafter_of(subject.spec)
    right = head.keep_context

    def keep(states: Tensor, rope: tuple[Tensor, Tensor], call: Any) -> None:
        if type(call).__name__ == "Decode":
            rope = head.rope(subject.spec.target, states, call.rows.positions + 1)
        right(states, rope, call)

    head.keep_context = keep  # type: ignore[method-assign]
    return subject


def written_one_further(subject: Subject) -> Subject:
    """Context rows lie one row too far, the first of a verify's in place of the second."""
    head = drafter_of(subject.spec)
    right = head.keep_context

    def keep(states: Tensor, rope: tuple[Tensor, Tensor], call: Any) -> None:
        if type(call).__name__ == "Decode":
            states = torch.cat([states[:, :1], states[:, :-1]], dim=1)
        right(states, rope, call)

    head.keep_context = keep  # type: ignore[method-assign]
    return subject


@pytest.mark.parametrize("plant", [causal, decoded_one_further, written_one_further])
def test_the_audit_finds_a_fault(
    target: Path, drafters: dict[str, Path], plant: Callable[[Subject], Subject]
) -> None:
    """Tokens stay plain greedy's under each, and the drafts are not the reference's."""
    subject = plant(make_tiny_subject(target, head=drafters["full"]))
    assert drafts.run(subject).answer is Answer.WRONG
    assert hidden.run(subject).answer is Answer.HOLDS


def test_all_drafts_are_made_by_one_forward(target: Path, drafters: dict[str, Path]) -> None:
    spec = speculator(target, drafters["full"])
    assert block_drafts.is_parallel(spec) and spec.num_modules == 1
    assert drafter_of(spec).aux_layers == spec.target.aux_layers == (1, 2, 3)
    forwards = planned_forwards(Phase.ITERATION, Bucket(2, 12), 5, is_parallel=True)
    state = make_state(spec, 5, 5)
    with watched_forwards(spec) as seen:
        iteration(spec, state.rows(2))
    assert seen == forwards == [("target", 12), ("head", 12)]
