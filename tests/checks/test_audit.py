"""The audit's own parts: what it is tried with, what it is held against, and when it forgives."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.checks import drafts, equality, isolation, padding, parity
from cgbench.checks.findings import Answer, Where
from cgbench.checks.reference import Plain, own_attention
from cgbench.checks.steps import committed_rows
from cgbench.checks.subject import Subject, choose_prompts
from cgbench.checks.tokens import Judge
from cgbench.compile.decode import compiled
from cgbench.engine.runner import EagerRunner
from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.heads.families import DEEPSEEK, EAGLE, ERNIE, QWEN, STEP, HeadFamily
from cgbench.planning import PlanRequest, plan
from cgbench.words import Scope
from tests.support.audited import (
    FEW_SIZES,
    loaded,
    make_deployment,
    make_tiny_subject,
    run_all,
    run_checks,
    run_reference_checks,
    subject_of,
)
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_checkpoint,
    random_prompts,
    reference_model,
)
from tests.support.tracing import traced_layers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"), "mimo", seed=3)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("deepseek_v3", DEEPSEEK),
        ("ernie4_5_moe", ERNIE),
        ("gemma3_text", EAGLE),
        ("step3p7", STEP),
        ("qwen3_5_moe", QWEN),
    ],
)
def test_every_kind_of_model_passes(tmp_path: Path, kind: str, family: HeadFamily) -> None:
    """By every check where attention is latent: of the others ``test_mutations`` has the like."""
    folder = make_checkpoint(tmp_path, kind, seed=5, family=family)
    subject = make_tiny_subject(folder, spec_tokens=(3,), batch_sizes=FEW_SIZES)
    is_like_others = kind != "deepseek_v3"
    findings = run_reference_checks(subject) if is_like_others else run_checks(subject)
    assert {finding.answer for finding in findings} == {Answer.HOLDS}


@pytest.mark.parametrize("kind", ["mimo", "qwen3_5"])
def test_lower_precision_is_judged_by_its_noise(tmp_path: Path, kind: str) -> None:
    folder = make_checkpoint(tmp_path, kind, seed=3)
    how: dict[str, Any] = {"spec_tokens": (3,), "dtype": torch.bfloat16}
    subject = make_tiny_subject(folder, batch_sizes=FEW_SIZES, **how)
    # The engine is held to itself in lower precision too, where it is not recurrent.
    is_dense = kind == "mimo"
    run = run_checks if is_dense else run_reference_checks
    findings = {finding.check: finding for finding in run(subject)}
    if is_dense:
        not_run = findings.pop(parity.NAME)
        assert not_run.reason is not None and "no graphs" in not_run.reason
    assert {finding.answer for finding in findings.values()} == {Answer.HOLDS}
    assert findings[equality.NAME].figures["noise"] > 1e-3


@pytest.mark.parametrize(
    ("spec_tokens", "batch_sizes", "not_run", "with_graphs"),
    [
        ((3,), (1, 2), set(), False),
        ((0,), (1, 2), {"drafts"}, False),
        # Every one a bucket: nothing is padded.
        ((3,), (2,), {"parity", "padding"}, False),
        ((3,), (2, 5), {"padding"}, True),
        ((3,), (1,), {"isolation"}, False),
    ],
)
def test_a_check_with_nothing_to_compare_does_not_hold(
    checkpoint: Path,
    spec_tokens: tuple[int, ...],
    batch_sizes: tuple[int, ...],
    not_run: set[str],
    with_graphs: bool,
) -> None:
    model = loaded(checkpoint)
    how: dict[str, Any] = {"spec_tokens": spec_tokens, "with_graphs": with_graphs, "model": model}
    subject = make_tiny_subject(checkpoint, batch_sizes=batch_sizes, **how)
    findings = [check.run(subject) for check in (drafts, parity, padding, isolation)]
    assert {each.check for each in findings if each.answer is Answer.NOT_RUN} == not_run
    assert not [each for each in findings if each.answer is Answer.WRONG]


def test_a_lone_prompt_has_no_neighbours(checkpoint: Path) -> None:
    """Its copies read of each other what they would read of themselves."""
    subject = make_tiny_subject(checkpoint, model=loaded(checkpoint))
    finding = isolation.run(replace(subject, prompts=subject.prompts[:1]))
    assert finding.answer is Answer.NOT_RUN


def test_stale_kv_is_poisoned_without_padding(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that is read past its length is found where no row is padded."""
    subject = replace(
        make_tiny_subject(checkpoint, model=loaded(checkpoint)), only_batch_sizes=(2,)
    )
    monkeypatch.setattr(padding, "rows_past", lambda s, rows: committed_rows(s, rows))
    assert padding.run(subject).answer is Answer.WRONG


def test_plain_is_a_separately_loaded_models_greedy_decoding(checkpoint: Path) -> None:
    prompts = random_prompts(3)
    plain = Plain(load_tiny(checkpoint).target, [tuple(prompt) for prompt in prompts])
    expected = greedy_reference(reference_model(checkpoint), prompts, 12)
    assert [plain.tokens(tuple(prompt), 12) for prompt in prompts] == expected


def test_plain_heeds_neither_eos_nor_a_penalty(checkpoint: Path) -> None:
    target = load_tiny(checkpoint).target
    prompt = tuple(random_prompts(1)[0])
    expected = Plain(target, [prompt]).tokens(prompt, 12)
    target.model.generation_config.eos_token_id = expected[1]
    target.model.generation_config.repetition_penalty = 5.0
    assert Plain(target, [prompt]).tokens(prompt, 12) == expected
    assert target.model.generation_config.repetition_penalty == 5.0


@pytest.mark.parametrize("kind", ["mimo", "step3p7"])
def test_the_engines_attention_is_back_after_an_error(tmp_path: Path, kind: str) -> None:
    """step3p7's config is nested: its text and its vision part have one each."""
    model = load_tiny(make_checkpoint(tmp_path, kind), with_head=False).target.model

    def implementations() -> list[str]:
        parts = [part.config for part in model.modules() if hasattr(part, "config")]
        return [config._attn_implementation for config in [*parts, model.config]]

    before = implementations()
    text = model.config.get_text_config()
    assert text._attn_implementation == ATTENTION_NAME
    with pytest.raises(ZeroDivisionError), own_attention(model, "eager"):
        assert text._attn_implementation == "eager"
        raise ZeroDivisionError
    assert implementations() == before


def test_batch_sizes_are_all_to_64_and_a_sample_above() -> None:
    subject = _planned(max_batch_size=200)
    sizes, buckets = subject.batch_sizes(3), subject.plans[3].batch_sizes
    assert sizes[:64] == tuple(range(1, 65))
    above = {size for size in buckets if size > 64}
    assert above <= set(sizes) and {size - 1 for size in above if size > 65} <= set(sizes)
    assert len(sizes) < len(range(1, subject.plans[3].eager_above))


def test_edge_sizes_hold_the_least_and_the_most_padding() -> None:
    assert _planned(capture_sizes=(2, 8), max_batch_size=8).edge_sizes(3) == (1, 2, 3, 7, 8)


def _planned(max_batch_size: int, capture_sizes: tuple[int, ...] = ()) -> Subject:
    policy = "explicit" if capture_sizes else "scaled"
    request = PlanRequest(3, max_batch_size, policy, capture_sizes, "requests")
    nothing: Any = None
    return Subject(nothing, {}, {}, {}, {3: plan(request)}, ((1,),), 8, 0, True)


def test_prompts_are_distinct_and_ragged() -> None:
    prompts = [tuple(range(i, i + 40)) for i in range(30)] * 2
    chosen = choose_prompts(prompts, seed=1)
    assert len(set(chosen)) == len(chosen) == 16
    assert len({len(prompt) for prompt in chosen}) > 4
    assert all(any(full[: len(p)] == p for full in prompts) for p in chosen)
    assert chosen == choose_prompts(prompts, seed=1) != choose_prompts(prompts, seed=2)


def test_ragged_prompts_stay_whole() -> None:
    prompts = [(1, 2, 3), (4, 5), (6,)]
    assert set(choose_prompts(prompts, seed=0)) == set(prompts)


def test_another_acceptance_rule_is_audited_greedy(checkpoint: Path) -> None:
    """Its own runners are left out, for they answer something else."""
    subject = subject_of(make_deployment(checkpoint, acceptance="synthetic:0.5,0.4,0.3"))
    runner = subject.runners[3, Scope.EAGER]
    assert isinstance(runner, EagerRunner) and runner.spec is subject.spec
    assert equality.run(subject).answer is Answer.HOLDS


def test_a_first_difference_names_both_tokens_and_their_logits(checkpoint: Path) -> None:
    subject = make_tiny_subject(checkpoint, model=loaded(checkpoint))
    prompt = subject.prompts[0]
    expected = subject.plain.tokens(prompt, 6)
    got = [*expected[:4], (expected[4] + 1) % 64, expected[5]]
    found = Judge(subject).difference(prompt, expected, got, Where(row=2))
    assert found is not None
    assert (found.where.row, found.where.position) == (2, 4)
    assert (found.expected, found.got) == (expected[4], got[4])
    assert found.expected_logit is not None and found.got_logit is not None
    assert found.expected_logit > found.got_logit
    assert found.inputs["got_ids"].tolist() == got


def test_only_a_near_tie_is_forgiven_and_only_in_lower_precision(checkpoint: Path) -> None:
    """The runner-up is swapped in, once as far away as it is and once within the noise."""
    for dtype, noise_factor, forgiven in [
        (torch.bfloat16, 0.49, False),
        (torch.bfloat16, 0.51, True),
        (torch.float32, 0.51, False),
    ]:
        subject = make_tiny_subject(checkpoint, dtype=dtype)
        prompt = subject.prompts[0]
        logits = subject.plain.next_logits(prompt)
        best, second = logits.topk(2).indices.tolist()
        margin = float(logits[best] - logits[second])
        subject.plain.__dict__["_noises"] = margin * noise_factor, 0.0
        found = Judge(subject).difference(prompt, [best], [second], Where())
        assert (found is None) is forgiven


def test_missing_tokens_are_never_forgiven(checkpoint: Path) -> None:
    subject = make_tiny_subject(checkpoint, dtype=torch.bfloat16)
    found = Judge(subject).difference(subject.prompts[0], [1, 2, 3], [1, 2], Where())
    assert found is not None and found.text == "2 tokens emitted where 3 were expected"


@pytest.mark.slow
def test_compiled_layers_pass(checkpoint: Path) -> None:
    with traced_layers():
        deployment = compiled(make_deployment(checkpoint, spec_tokens=(3,)))
        subject = subject_of(deployment)
        states = {3: subject.states[3]}
        findings = run_all(replace(subject, states=states, only_batch_sizes=FEW_SIZES))
    assert not [finding for finding in findings if finding.answer is Answer.WRONG]
