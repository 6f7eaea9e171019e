"""Workloads: waves, contexts of an exact length, digests, and prompts from files."""

import json
from pathlib import Path

import pytest

from cgbench.errors import BadInputError
from cgbench.measure.workload import (
    Workload,
    random_workload,
    read_prompts,
    sha256_of,
    text_workload,
)

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


def test_longest(workload: Workload) -> None:
    assert workload.longest == 3


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


def write(folder: Path, *texts: str, **options: bool) -> Path:
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "id": 1}, **options) + "\n" for text in texts]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_prompts_are_read_as_written_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    texts = ["def f():\n    return 1\n", " é 漢 ", '"quoted"']
    assert read_prompts(write(tmp_path, *texts, ensure_ascii=False)) == texts


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\u0085"])
def test_only_newlines_end_a_line(tmp_path: Path, char: str) -> None:
    """JSON allows these unescaped inside a string, and json.dumps(ensure_ascii=False) writes so."""
    texts = [f"before{char}after"]
    assert read_prompts(write(tmp_path, *texts, ensure_ascii=False)) == texts


def test_a_prompt_without_tokens_is_refused_by_its_number() -> None:
    with pytest.raises(BadInputError, match=r"--prompts mine\.jsonl: prompt 2 has no tokens"):
        text_workload("mine.jsonl", ["a", "b"], lambda text: [1] if text == "a" else [])


def test_text_is_encoded_by_the_tokenizer_given() -> None:
    workload = text_workload("mine.jsonl", ["ab", "c"], lambda text: [*map(ord, text)])
    assert workload == Workload("mine.jsonl", ((97, 98), (99,)))
    assert not workload.one_wave
