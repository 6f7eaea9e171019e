"""A head of several MTP modules: draft step j is module j's, with its own KV, norms and output."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from cgbench.checks.reference import reference_draft_logits
from cgbench.engine.forwards import planned_forwards, watched_forwards
from cgbench.engine.iteration import Speculator, iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.errors import BadInputError, MissingHeadError
from cgbench.kernels.attention import LayerKv
from cgbench.models.heads.families import DEEPSEEK, EAGLE, MIMO, MIMO_V2, QWEN, STEP, HeadFamily
from cgbench.models.heads.head import HeadForm
from cgbench.models.loader import LoadedModel
from cgbench.planning import Bucket
from cgbench.request.choices import ModuleFeed
from cgbench.words import Phase
from tests.support.bigram_layouts import acceptance_length, load
from tests.support.own_modules import make_own_modules
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 16
ROOM = 24 + MAX_NEW_TOKENS + 2 * 5
OWN = HeadForm(own_output=True, own_embedding=True)
CASES = [
    (STEP, "step3p7", OWN),
    (STEP, "step3p5", HeadForm(own_output=True, dense=True)),
    (MIMO_V2, "mimo_v2_flash", HeadForm(dense=True)),
    (DEEPSEEK, "deepseek_v3", HeadForm()),
    (QWEN, "qwen3_next-hybrid", HeadForm()),
    (MIMO, "mimo", HeadForm(own_output=True)),
]
"""Chained before and after the norm and fed by the target, with windows and sinks, latent
attention, experts, and matrices of the modules' own."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].name}-{case[1]}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, kind, form = request.param
    made = tmp_path_factory.mktemp("modules")
    return make_checkpoint(made, kind, family=family, seed=5, form=form, num_modules=3)


@pytest.fixture(scope="module")
def spec(folder: Path) -> Speculator:
    return make_speculator(load_tiny(folder), max_batch_size=5, room=ROOM)


def short_prompts() -> list[list[int]]:
    """Some are shorter than the head has modules."""
    return [[5], [9, 3], *random_prompts(3, seed=4)]


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    return greedy_reference(reference_model(folder), short_prompts(), MAX_NEW_TOKENS)


@pytest.mark.parametrize("k", [3, 5])
def test_tokens_are_plain_greedys(spec: Speculator, expected: list[list[int]], k: int) -> None:
    """Of a ragged batch by all modules. Of one request by all, and by the last one twice more."""
    prompts = short_prompts() if k == 3 else short_prompts()[3:4]
    runner = EagerRunner(spec, make_state(spec, k, 5))
    got = decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS, max_num_tokens=64)
    assert got.token_ids == [expected[short_prompts().index(prompt)] for prompt in prompts]


@pytest.mark.parametrize("k", [2, 5])
def test_drafts_are_those_of_every_module_recomputed(
    spec: Speculator, expected: list[list[int]], k: int
) -> None:
    """After iterations that accept from none to all: rows that were computed with drafts are
    computed again, whether those were kept or not."""
    for sequences, drafts in trajectory(spec, expected, k):
        for sequence, row in zip(sequences, drafts, strict=True):
            assert spec.head is not None
            logits = reference_draft_logits(spec.target, spec.head, sequence, k)
            assert row == logits.argmax(-1).tolist()


def trajectory(
    spec: Speculator, expected: list[list[int]], k: int
) -> list[tuple[list[list[int]], list[list[int]]]]:
    """The sequences and the drafts after each of a few iterations, of which row i's accepts
    (i + its number) % (k + 1) drafts at least."""
    prompts = short_prompts()
    prefilled = prefill(spec, prompts, max_num_tokens=50)
    state = make_state(spec, k, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    rows, found = state.rows(5), []
    sequences = [[*p, t] for p, t in zip(prompts, prefilled.last.tolist(), strict=True)]
    for number in range(5):
        found.append(([[*each] for each in sequences], rows.drafts.tolist()))
        for row, (prompt, tokens) in enumerate(zip(prompts, expected, strict=True)):
            kept = (row + number) % (k + 1)
            following = tokens[len(sequences[row]) - len(prompt) :][:kept]
            rows.drafts[row, : len(following)] = torch.tensor(following, dtype=torch.long)
        iteration(spec, rows)
        for i, emitted in enumerate(rows.num_emitted.tolist()):
            sequences[i] += rows.out[i, :emitted].tolist()
        if not rows.active.all():
            break
    return found


def test_prefill_fills_every_modules_kv(spec: Speculator) -> None:
    """A module whose KV is overwritten after the prefill drafts something else."""
    assert spec.head is not None
    prompts = random_prompts(5, seed=11)
    prefilled = prefill(spec, prompts, max_num_tokens=50)
    state = make_state(spec, 3, 5)
    begin_decoding(spec, state, prefilled, tokens_left=5)
    before = state.full.drafts.clone()
    for place, layer in enumerate(spec.head.layer_numbers):
        kv = spec.cache.layers[layer]
        kept = LayerKv(kv.keys.clone(), kv.values.clone())
        for tensor in (kv.keys, kv.values):
            tensor.fill_(50.0)
        begin_decoding(spec, state, prefilled, tokens_left=5)
        # Draft 1 comes of the prefill itself.
        if place:
            assert (state.full.drafts[:, place] != before[:, place]).any()
        kv.keys.copy_(kept.keys)
        kv.values.copy_(kept.values)


def test_equal_states_give_equal_drafts_whatever_was_accepted_before(
    spec: Speculator, expected: list[list[int]]
) -> None:
    """An iteration leaves its modules' KV as a function of the committed tokens and drafts alone,
    so that the one before it can be taken again from its row state."""
    prompts = short_prompts()
    prefilled = prefill(spec, prompts, max_num_tokens=50)
    state = make_state(spec, 3, 5)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    rows = state.rows(5)
    right = torch.tensor([tokens[1:4] for tokens in expected])
    wrong = (right + 1) % spec.target.vocab_size
    start, carries = prefilled.seq_len.clone(), rows.carries.clone()

    def drafts_after(tried: torch.Tensor) -> list[list[int]]:
        rows.seq_len.copy_(start)
        rows.last.copy_(prefilled.last)
        rows.carries.copy_(carries)
        rows.drafts.copy_(tried)
        iteration(spec, rows)
        return rows.drafts.tolist()  # type: ignore[no-any-return]

    first = drafts_after(right), drafts_after(wrong)
    assert (drafts_after(right), drafts_after(wrong)) == first


def test_a_bucket_of_each_phase_holds_the_planned_forwards(spec: Speculator) -> None:
    state = make_state(spec, 5, 5)
    with watched_forwards(spec) as seen:
        iteration(spec, state.rows(4))
    planned = planned_forwards(Phase.ITERATION, Bucket(4, 24), 5, spec.num_modules)
    assert seen == planned
    assert planned[1:] == [("head", rows * 4) for rows in (6, 7, 8, 1, 1)]


KEPT = TemporaryDirectory(prefix="cgbench-modules-")
"""Of this process. It is gone when that ends."""


def own_modules(family: HeadFamily, order: tuple[int, ...] = (1, 2, 3)) -> Path:
    """The checkpoint of modules that are right at their own step alone, made once."""
    folder = Path(KEPT.name) / "-".join(map(str, (family.name, *order)))
    return folder if folder.exists() else make_own_modules(folder, family, order)


@pytest.mark.parametrize(
    ("family", "lengths"),
    [(STEP, {1: 2.0, 3: 4.0, 5: 6.0}), (MIMO_V2, {1: 2.0, 3: 4.0, 5: 4.0})],
)
def test_modules_that_are_right_at_their_own_step_alone_have_every_draft_kept(
    family: HeadFamily, lengths: dict[int, float]
) -> None:
    """Past the last: a chained module goes on by itself, one fed the target's state cannot."""
    model = load(own_modules(family))
    assert {k: acceptance_length(model, k) for k in lengths} == lengths


@pytest.mark.parametrize(
    ("family", "order", "length"),
    [
        (STEP, (2, 1, 3), 1.0),
        (STEP, (1, 1, 1), 2.0),
        (MIMO_V2, (1, 3, 2), 2.0),
        (MIMO_V2, (1, 2, 2), 3.0),
    ],
)
def test_modules_in_anothers_place_have_no_draft_kept_from_there_on(
    family: HeadFamily, order: tuple[int, ...], length: float
) -> None:
    assert acceptance_length(load(own_modules(family, order)), 3) == length


@pytest.mark.parametrize("family", [STEP, MIMO_V2], ids=lambda family: family.name)
def test_modules_fed_the_other_way_have_the_first_draft_kept_alone(
    family: HeadFamily,
) -> None:
    other = {ModuleFeed.CHAIN: ModuleFeed.TARGET, ModuleFeed.TARGET: ModuleFeed.CHAIN}
    model = load(own_modules(family), feed=other[family.feed])
    assert model.head_label == f"{family.name}[feed={other[family.feed]}] (3 modules)"
    assert acceptance_length(model, 3) == 2.0


def without_outputs(model: LoadedModel) -> None:
    assert model.head is not None
    for module in model.head.mtp_modules:
        module.output = None


def with_the_first_output(model: LoadedModel) -> None:
    assert model.head is not None
    for module in model.head.mtp_modules[1:]:
        module.output = model.head.output


@pytest.mark.parametrize(
    ("change", "length"), [(without_outputs, 1.0), (with_the_first_output, 2.0)]
)
def test_each_module_has_its_own_output_matrix(
    change: Callable[[LoadedModel], None], length: float
) -> None:
    """With them, every draft is kept: see the test of modules that are right."""
    model = load(own_modules(STEP))
    change(model)
    assert acceptance_length(model, 3) == length


@pytest.mark.parametrize(
    ("most", "label", "length"),
    [
        (3, "step (3 modules)", 4.0),
        (2, "step (modules 1..2 of 3)", 3.0),
        (1, "step (module 1 of 3)", 2.0),
    ],
)
def test_fewer_modules_reuse_the_last_of_them(most: int | None, label: str, length: float) -> None:
    """Of this checkpoint the third alone can be run again."""
    model = load(own_modules(STEP), mtp_modules=most)
    assert model.head_label == label and model.num_head_modules == 3
    assert acceptance_length(model, 3) == length


def test_more_modules_than_there_are_is_refused() -> None:
    with pytest.raises(BadInputError, match="--mtp-modules 4: the head has 3 modules"):
        load(own_modules(STEP), mtp_modules=4)


def test_a_repacked_row_keeps_what_its_modules_are_fed(
    spec: Speculator, expected: list[list[int]]
) -> None:
    """Rows change places between iterations; drafts are the same as without."""
    prompts = short_prompts()
    prefilled = prefill(spec, prompts, max_num_tokens=50)
    orders = [[0, 1, 2, 3, 4], [4, 2, 0, 3]]
    drafts = []
    for order in orders:
        state = make_state(spec, 3, 5)
        begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
        iteration(spec, state.rows(5))
        state.repack(order)
        rows = state.rows(len(order))
        iteration(spec, rows)
        drafts.append(dict(zip(order, rows.drafts.tolist(), strict=True)))
    assert drafts[1] == {row: drafts[0][row] for row in orders[1]}


def test_a_family_whose_layers_are_of_one_module_is_refused_with_two(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", family=EAGLE, num_modules=2)
    with pytest.raises(MissingHeadError, match=r"2 layers \(layers\.1\)"):
        load_tiny(folder)


def test_modules_attend_as_their_family_says(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "gemma3_text", family=MIMO_V2, num_modules=2)
    model = load_tiny(folder)
    assert model.head is not None
    assert {module.layer_type for module in model.head.mtp_modules} == {"sliding_attention"}
