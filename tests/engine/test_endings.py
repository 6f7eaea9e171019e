"""How requests end: EOS anywhere in an accepted run, the length limit, re-packing, and the room."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cgbench.engine.generation import Generated, generate
from cgbench.engine.iteration import Speculator
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.loader import LoadedModel
from tests.support.tiny import (
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

BATCH = 8
MAX_NEW_TOKENS = 20
LONGEST = 23


@cache
def made() -> tuple[LoadedModel, list[list[int]]]:
    """A model, and its greedy tokens with no EOS."""
    with TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder), "qwen2", seed=3)
        reference = reference_model(checkpoint)
        tokens = greedy_reference(reference, random_prompts(BATCH), MAX_NEW_TOKENS)
        return load_tiny(checkpoint), tokens


@pytest.fixture
def plain() -> list[list[int]]:
    return made()[1]


def make_spec(k: int, max_new_tokens: int = MAX_NEW_TOKENS) -> Speculator:
    """With exactly the room that the command line would give."""
    room = LONGEST + max_new_tokens + 2 * k
    return make_speculator(made()[0], max_batch_size=BATCH, room=room)


def decode(
    spec: Speculator, k: int, max_new_tokens: int, eos: tuple[int, ...] = (), ignore: bool = False
) -> Generated:
    state = make_state(spec, k, BATCH, eos)
    prefilled = prefill(spec, random_prompts(BATCH), max_num_tokens=100)
    begin_decoding(spec, state, prefilled, tokens_left=max_new_tokens - 1, ignore_eos=ignore)
    return generate(EagerRunner(spec, state), prefilled.last.tolist())


def cut(tokens: list[int], eos: tuple[int, ...]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens


def common_tokens(plain: list[list[int]]) -> list[tuple[int, ...]]:
    """EOS choices that end some requests early, at different places, and others not at all."""
    flat = [token for tokens in plain for token in tokens]
    by_count = sorted(set(flat), key=flat.count)
    return [(by_count[-1],), (by_count[len(by_count) // 2],), tuple(by_count[:3])]


@pytest.mark.parametrize(("k", "choice"), [(0, 0), (1, 1), (3, 2), (3, 0), (16, 1), (16, 2)])
def test_eos_ends_a_request_where_plain_greedy_ends_it(
    plain: list[list[int]], k: int, choice: int
) -> None:
    eos = common_tokens(plain)[choice]
    got = decode(make_spec(k), k, MAX_NEW_TOKENS, eos)
    assert got.token_ids == [cut(tokens, eos) for tokens in plain]


def test_ignored_eos_ends_nothing(plain: list[list[int]]) -> None:
    eos = common_tokens(plain)[0]
    assert decode(make_spec(3), 3, MAX_NEW_TOKENS, eos, ignore=True).token_ids == plain


@pytest.mark.parametrize(
    ("k", "max_new_tokens"),
    [(0, 1), (0, 2), (1, 2), (1, 3), (5, 1), (5, 3), (5, 7), (16, 2), (16, 7)],
)
def test_the_length_limit_cuts_inside_an_accepted_run(
    plain: list[list[int]], k: int, max_new_tokens: int
) -> None:
    got = decode(make_spec(k, max_new_tokens), k, max_new_tokens)
    assert got.token_ids == [tokens[:max_new_tokens] for tokens in plain]


def test_finished_rows_leave_the_batch(plain: list[list[int]]) -> None:
    eos = common_tokens(plain)[0]
    got = decode(make_spec(3), 3, MAX_NEW_TOKENS, eos)
    assert got.num_rows == sorted(got.num_rows, reverse=True)
    assert got.num_rows[-1] < got.num_rows[0]


@pytest.mark.parametrize("k", [1, 3, 16])
def test_no_row_is_written_past_its_room(k: int) -> None:
    """Prompts shorter than the longest leave room at the end of their slots: still zero after."""
    spec = make_spec(k)
    prompts = random_prompts(BATCH)
    decode(spec, k, MAX_NEW_TOKENS)
    longest = max(map(len, prompts))
    for layer in spec.cache.layers.values():
        keys = layer.keys.view(spec.cache.num_slots, spec.cache.room, -1)
        for slot, prompt in enumerate(prompts):
            # Prefill pads a group to its longest prompt; decode goes 2k past the last token.
            reached = max(longest, len(prompt) + MAX_NEW_TOKENS + 2 * k)
            assert not keys[slot, reached:].any()
