"""EAGLE-3 heads: three states of the target, one layer, a vocabulary of the head's own."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cgbench.checks import drafts, equality, hidden
from cgbench.checks.findings import Answer
from cgbench.checks.reference import reference_draft_logits
from cgbench.engine.acceptance import Sampled
from cgbench.engine.generation import generate
from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.eagle3_head import Eagle3Head
from cgbench.models.loader import LoadedModel
from cgbench.request.choices import KvDtype
from tests.support.audited import FEW_SIZES, make_tiny_subject, run_checks
from tests.support.aux_runs import (
    FEW_TOKENS,
    MAX_NEW_TOKENS,
    ROOM,
    check_drafts,
    check_padding,
    check_tokens,
    prompts,
    speculator,
    trajectory,
)
from tests.support.eagle3 import (
    DEAD,
    LAYOUTS,
    LIVE,
    SAFEAILAB,
    SPECULATORS_3,
    SUCCESSOR,
    VLLM,
    WHOLE,
    Layout,
    make_exact,
    make_head_folder,
    make_target,
    read_head,
    write_head,
)
from tests.support.eagle3_reference import PlainHead
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

by_name = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target") / "llama")


@pytest.fixture(scope="module")
def heads(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {each.name: make_head_folder(folder / each.name, each, target) for each in LAYOUTS}


@pytest.fixture(scope="module")
def reference(target: Path) -> PreTrainedModel:
    return reference_model(target)


@pytest.fixture(scope="module")
def expected(reference: PreTrainedModel) -> list[list[int]]:
    return greedy_reference(reference, prompts(), MAX_NEW_TOKENS)


@by_name
def test_tokens_are_plain_greedys(
    target: Path, heads: dict[str, Path], expected: list[list[int]], layout: Layout
) -> None:
    check_tokens(speculator(target, heads[layout.name]), expected)


@pytest.mark.parametrize(
    ("layout", "k"),
    [(SAFEAILAB, 1), (SAFEAILAB, 3), (SPECULATORS_3, 3), (VLLM, 5), (WHOLE, 3)],
    ids=lambda value: getattr(value, "name", value),
)
def test_drafts_are_those_of_a_plain_implementation(
    target: Path,
    heads: dict[str, Path],
    reference: PreTrainedModel,
    expected: list[list[int]],
    layout: Layout,
    k: int,
) -> None:
    plain = PlainHead(layout, heads[layout.name], reference)
    check_drafts(speculator(target, heads[layout.name]), plain, expected, k)


@by_name
def test_padded_rows_change_nothing(target: Path, heads: dict[str, Path], layout: Layout) -> None:
    check_padding(speculator(target, heads[layout.name]))


KEPT = TemporaryDirectory(prefix="cgbench-eagle3-")
"""Of this process. It is gone when that ends."""


@cache
def exact_folders() -> tuple[Path, Path]:
    return make_exact(Path(KEPT.name))


@cache
def exact() -> LoadedModel:
    target, head = exact_folders()
    return load_tiny(target, head=head)


def exact_with(head: Path, change: Callable[[Path], None]) -> LoadedModel:
    """The exact target with a copy of its head in ``head``, changed."""
    target, unchanged = exact_folders()
    shutil.copytree(unchanged, head)
    change(head)
    return load_tiny(target, head=head)


def acceptance_length(model: LoadedModel, k: int) -> float:
    """The mean over three requests of known tokens, whose text is checked on the way."""
    spec = make_speculator(model, max_batch_size=3, room=ROOM)
    state = make_state(spec, k, 3)
    live = [[2 * token for token in p] for p in random_prompts(3, vocab=LIVE)]
    prefilled = prefill(spec, live, max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS)
    got = generate(EagerRunner(spec, state), prefilled.last.tolist())
    for prompt, tokens in zip(live, got.token_ids, strict=True):
        before = [prompt[-1], *tokens[:-1]]
        assert tokens == [2 * SUCCESSOR[token // 2] for token in before]
    accepted = [count for counts in got.accepted for count in counts]
    return 1 + sum(accepted) / len(accepted)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_head_that_is_right_at_every_step_has_every_draft_kept(k: int) -> None:
    assert acceptance_length(exact(), k) == k + 1


@pytest.mark.parametrize("order", [*permutations((2, 4, 5))][1:])
def test_states_of_swapped_layers_have_no_draft_kept(order: tuple[int, ...]) -> None:
    target = exact().target
    own = target.aux_layers
    assert own == (2, 4, 5)
    target.watch_layers(order)
    try:
        assert acceptance_length(exact(), 3) == 1.0
    finally:
        target.watch_layers(own)


READ, WRITTEN = "eagle_aux_hidden_state_layer_ids", "eagle_config"


@pytest.mark.parametrize(
    ("stated", "length"),
    [
        ({READ: [2, 4, 5]}, 4.0),
        ({READ: [1, 3, 4]}, 1.0),
        ({READ: [3, 4, 5]}, 1.0),
        ({READ: [2, 4, 8]}, 1.0),
        ({WRITTEN: {READ: [1, 3, 4]}}, 4.0),
        ({WRITTEN: {READ: [2, 4, 5]}}, 1.0),
        ({READ: [2, 4, 5], WRITTEN: {READ: [1, 3, 4]}}, 4.0),
        ({WRITTEN: {READ: [], "use_aux_hidden_state": True}}, 4.0),
    ],
)
def test_the_config_names_the_layers_that_read_or_write_the_states(
    stated: dict[str, Any], length: float, tmp_path: Path
) -> None:
    def state(head: Path) -> None:
        file = head / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | stated))

    assert acceptance_length(exact_with(tmp_path / "head", state), 3) == length


def by_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors["d2t"] += 1


def of_two_swapped(tensors: dict[str, torch.Tensor]) -> None:
    """Draft tokens 0 and 1 mean each other's. Either comes once in 32."""
    tensors["d2t"][0], tensors["d2t"][1] = 2, -1


@pytest.mark.parametrize(("change", "is_none_kept"), [(by_one, True), (of_two_swapped, False)])
def test_a_wrong_map_of_the_vocabulary(
    change: Callable[[dict[str, torch.Tensor]], None], is_none_kept: bool, tmp_path: Path
) -> None:
    def store(head: Path) -> None:
        tensors = read_head(head)
        change(tensors)
        write_head(head, tensors)

    length = acceptance_length(exact_with(tmp_path / "head", store), 3)
    assert length == 1.0 if is_none_kept else 3.0 < length < 4.0


def test_a_head_fed_its_output_after_the_norm_drafts_otherwise(
    target: Path, heads: dict[str, Path]
) -> None:
    """The layer's output is fed back before the norm. The norm is not linear in what follows."""
    spec = speculator(target, heads["safeailab"])
    assert spec.head is not None
    logits = []
    for chain in ("pre", "post"):
        spec.head.family = replace(spec.head.family, chain=chain)
        logits.append(reference_draft_logits(spec.target, spec.head, prompts()[2], 3))
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.equal(logits[0][1], logits[1][1])


def test_drafts_are_of_the_heads_own_vocabulary(target: Path, heads: dict[str, Path]) -> None:
    spec = speculator(target, heads["safeailab"])
    offsets = read_head(heads["safeailab"])["d2t"]
    known = set((torch.arange(24) + offsets).tolist())
    prefilled = prefill(spec, prompts(), max_num_tokens=50)
    state = make_state(spec, 5, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    assert set(state.full.drafts.flatten().tolist()) <= known


def test_sampled_drafts_have_a_distribution_over_the_targets_vocabulary(
    target: Path, heads: dict[str, Path]
) -> None:
    """A token that the head cannot draft has probability 0, and the others sum to 1."""
    spec = speculator(target, heads["safeailab"], accept=Sampled())
    prefilled = prefill(spec, prompts(), max_num_tokens=50)
    state = make_state(spec, 3, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    iteration(spec, state.full)
    probs = state.full.draft_probs[:5, :3]
    head = spec.head
    assert probs.shape == (5, 3, 64) and head is not None and head.target_ids is not None
    assert torch.allclose(probs.sum(-1), torch.ones(5, 3))
    outside = torch.ones(64, dtype=torch.bool).index_fill_(0, head.target_ids, False)
    assert not probs[..., outside].any()
    drafted = probs.gather(2, state.full.drafts[..., None])
    assert (drafted > 0).all()


def test_the_audit_passes(target: Path, heads: dict[str, Path]) -> None:
    """Of the layout that is least like its target. What a layout changes is in the drafts."""
    how: dict[str, Any] = {"spec_tokens": (3,), "batch_sizes": FEW_SIZES}
    subject = make_tiny_subject(target, head=heads["vllm"], with_graphs=True, **how)
    findings = run_checks(subject)
    assert {finding.answer for finding in findings} == {Answer.HOLDS}


def test_the_audit_passes_with_an_fp8_cache(target: Path, heads: dict[str, Path]) -> None:
    """The head's layer keeps its keys and values so too."""
    how: dict[str, Any] = {"spec_tokens": (3,), "batch_sizes": FEW_SIZES}
    head = heads["speculators"]
    subject = make_tiny_subject(target, head=head, kv_dtype=KvDtype.FP8, **how)
    assert {drafts.run(subject).answer, hidden.run(subject).answer} == {Answer.HOLDS}
    assert equality.run(subject).answer is not Answer.WRONG


@pytest.mark.parametrize("fault", ["layers", "map"])
def test_the_audit_finds_a_fault(target: Path, heads: dict[str, Path], fault: str) -> None:
    """States of other layers than the reference reads, and drafts by another map than it has."""
    subject = make_tiny_subject(target, head=heads["safeailab"])
    head = subject.spec.head
    assert isinstance(head, Eagle3Head)
    if fault == "map":
        ids = head.target_ids
        assert ids is not None
        head.to_target = lambda drafts: ids[(drafts + 1) % len(ids)]  # type: ignore[method-assign]
    else:
        to_input = head.to_input
        head.to_input = lambda hidden: to_input(  # type: ignore[method-assign]
            replace(hidden, aux=hidden.aux[::-1])
        )
    assert drafts.run(subject).answer is Answer.WRONG
    assert (hidden.run(subject).answer is Answer.WRONG) == (fault == "layers")


def test_the_exact_heads_dead_token_is_one_it_can_draft() -> None:
    head = exact().head
    assert head is not None and head.target_ids is not None and DEAD in head.target_ids.tolist()


@pytest.mark.parametrize(
    ("kind", "layer_types"),
    [
        ("qwen3_next-hybrid", ["linear_attention", "full_attention"] * 4),
        ("gemma3_text", ["sliding_attention", "full_attention"] * 4),
    ],
)
def test_targets_unlike_the_heads_layer(kind: str, layer_types: list[str], tmp_path: Path) -> None:
    """A hybrid, and Gemma's windows, (1 + w) norms and scaled embedding. The head's are plain."""
    target = make_target(tmp_path / "target", kind, layer_types=layer_types)
    layout = replace(SAFEAILAB, embedding="own")
    head = make_head_folder(tmp_path / "head", layout, target)
    model = reference_model(target)
    expected = greedy_reference(model, prompts(), MAX_NEW_TOKENS)
    spec = speculator(target, head)
    plain = PlainHead(layout, head, model)
    for sequences, made, _ in trajectory(spec, expected, 3)[1::2]:
        for sequence, row in zip(sequences, made, strict=True):
            assert row == plain.drafts(sequence, 3)
    runner = EagerRunner(spec, make_state(spec, 3, 5))
    tokens = decode_prompts(spec, runner, prompts(), FEW_TOKENS).token_ids
    assert tokens == [each[:FEW_TOKENS] for each in expected]
