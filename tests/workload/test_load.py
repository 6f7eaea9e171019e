"""Workloads: waves, contexts of an exact length, digests, and prompts from texts."""

import pytest

from cgbench.errors import BadInputError
from cgbench.workload.load import (
    Workload,
    random_workload,
    sha256_of,
    text_workload,
)
from cgbench.workload.prompt_files import PromptTexts

PROMPTS = ((1, 2, 3), (4,), (5, 6))


@pytest.fixture
def workload() -> Workload:
    return Workload("a test", PROMPTS)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (1, [[[1, 2, 3]], [[4]], [[5, 6]]]),
        (2, [[[1, 2, 3], [4]], [[5, 6]]]),
        (3, [[[1, 2, 3], [4], [5, 6]]]),
        (5, [[[1, 2, 3], [4], [5, 6], [1, 2, 3], [4]]]),
    ],
)
def test_waves_hold_every_prompt_and_repeat_where_there_are_too_few(
    workload: Workload, batch_size: int, expected: list[list[list[int]]]
) -> None:
    assert workload.waves(batch_size) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_one_wave_is_one_batch(batch_size: int) -> None:
    (wave,) = Workload("a test", PROMPTS, one_wave=True).waves(batch_size)
    assert wave == [list(PROMPTS[i % 3]) for i in range(batch_size)]


def test_contexts_start_with_their_own_prompt_and_have_the_length_asked_for(
    workload: Workload,
) -> None:
    assert workload.contexts(4, 5) == [
        [1, 2, 3, 4, 5],
        [4, 5, 6, 1, 2],
        [5, 6, 1, 2, 3],
        [1, 2, 3, 4, 5],
    ]
    assert workload.contexts(2, 1) == [[1], [4]]
    assert [len(context) for context in workload.contexts(3, 100)] == [100] * 3


def test_longest() -> None:
    workload = Workload("a test", ((1,), (1, 2, 3), (4, 5, 6), (7, 8)))
    assert (workload.longest, workload.longest_number) == (3, 2)


def test_the_digest_knows_where_lists_and_numbers_end() -> None:
    lists = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]], [[12], [3]], [[1, 2], [3], []], [[], []]]
    assert len({sha256_of(each) for each in lists}) == len(lists)
    assert sha256_of([[1, 2], [3]]) == sha256_of(((1, 2), (3,)))


def test_equal_workloads_have_equal_digests(workload: Workload) -> None:
    assert workload.sha256 == Workload("another name", PROMPTS).sha256
    assert workload.sha256 != Workload("a test", PROMPTS[::-1]).sha256


def test_random_tokens_come_from_the_seed_and_the_whole_vocabulary() -> None:
    first = random_workload(vocab_size=8, count=3, length=200, seed=1)
    assert first == random_workload(vocab_size=8, count=3, length=200, seed=1)
    assert first.prompts != random_workload(vocab_size=8, count=3, length=200, seed=2).prompts
    assert [len(prompt) for prompt in first.prompts] == [200] * 3
    assert all(set(prompt) == set(range(8)) for prompt in first.prompts)
    assert first.one_wave and "seed 1" in first.source


def test_a_prompt_without_tokens_is_refused_by_its_number() -> None:
    texts = PromptTexts("mine.jsonl", ("a", "b"))
    with pytest.raises(BadInputError, match=r"--prompts mine\.jsonl: prompt 2 has no tokens"):
        text_workload(texts, lambda text: [1] if text == "a" else [], 9, chat_template=False)


@pytest.mark.parametrize("chat_template", [False, True])
def test_a_workload_keeps_where_its_texts_are_from(chat_template: bool) -> None:
    texts = PromptTexts("mine", ("ab", "c"), licence="MIT", package="some==1.0", instruction="Do.")
    workload = text_workload(
        texts, lambda text: [*map(ord, text)], 255, chat_template=chat_template
    )
    assert workload == Workload(
        source="mine",
        prompts=((97, 98), (99,)),
        one_wave=False,
        chat_template=chat_template,
        licence="MIT",
        package="some==1.0",
    )
