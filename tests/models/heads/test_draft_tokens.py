"""The file that ranks tokens: its forms, its refusals, and what it is cut to."""

import json
import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.errors import BadInputError
from cgbench.models.heads.draft_tokens import choose_tokens, read_ranks

TOKENS = 64


def written(folder: Path, text: str, name: str = "ranks.json") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("[9, 3, 40]", [9, 3, 40]),
        ('{"3": 5, "40": 5, "9": 80, "1": 0}', [9, 3, 40, 1]),
        ("9\n3\n\n40\n", [9, 3, 40]),
        ("9\r\n 3\r\n40", [9, 3, 40]),
        ("\n [9]", [9]),
    ],
)
def test_the_forms_of_a_file(text: str, ids: list[int], tmp_path: Path) -> None:
    """Counts rank tokens, and of equal counts the lower id comes first."""
    assert read_ranks(written(tmp_path, text), TOKENS) == ids


def test_the_likeliest_are_taken_in_the_order_of_their_ids(tmp_path: Path) -> None:
    file = written(tmp_path, "[9, 40, 3, 1]")
    for count, ids in ((2, (9, 40)), (3, (3, 9, 40)), (None, (1, 3, 9, 40))):
        chosen = choose_tokens(count, str(file), TOKENS, is_random=False)
        assert chosen is not None and chosen.ids == ids
        assert chosen.label == f"{len(ids)} draft tokens of ranks.json"


def test_without_a_file() -> None:
    assert choose_tokens(None, None, TOKENS, is_random=False) is None
    chosen = choose_tokens(3, None, TOKENS, is_random=True)
    assert chosen is not None and (chosen.ids, chosen.source) == ((0, 1, 2), "by id")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no token"),
        ("[]", "holds no token"),
        ("{}", "holds no token"),
        ("[1, 2", "is not JSON"),
        ("[1, 2.0]", "token 2.0: must be a whole number from 0"),
        ("[1, true]", "token true: must be a whole number from 0"),
        ("[-1]", "token -1: must be a whole number from 0"),
        ('["a"]', "token a: must be a whole number from 0"),
        ('{"a": 1}', "key a: must be a token id"),
        ('{"1": -1}', "the count of token 1, -1: must be a whole number from 0"),
        ('{"1": 0.5}', "the count of token 1, 0.5: must be a whole number from 0"),
        ('{"1": 4, "01": 5}', "counts a token twice"),
        ('{"1": 4, "1": 5}', "key '1' is there twice"),
        ("1\n2 7\n", "line 2 2 7: must be a token id"),
        ("1\n-2\n", "line 2 -2: must be a token id"),
        ("1\n" + "9" * 30, "line 2 9999"),
        ("[5, 64]", "token 64 is out of the vocabulary of 64. The file is of another model"),
        ("[5, 7, 5]", "token 5 is there 2 times"),
    ],
)
def test_a_bad_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(BadInputError, match=re.escape(words)) as refused:
        read_ranks(file, TOKENS)
    assert str(refused.value).startswith(f"--draft-vocab-from {file}: ")


class Runs:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("name", ["freq_2.pt", "freq", "freq.json"])
def test_a_pickle_is_refused_unopened(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    for write in (lambda: file.write_bytes(pickle.dumps(Runs())), lambda: torch.save([9, 3], file)):
        write()
        with pytest.raises(BadInputError, match="is a pickle, which can run code") as refused:
            read_ranks(file, TOKENS)
        assert not (tmp_path / "ran").exists()
        assert "\n" not in str(refused.value) and "python -c" in str(refused.value)


def test_the_command_that_converts_a_pickle_makes_a_file_that_is_read(tmp_path: Path) -> None:
    """Published ranks are a list, or a tensor."""
    file = tmp_path / "freq_2.pt"
    for ids in ([9, 3], torch.tensor([9, 3])):
        torch.save(ids, file)
        with pytest.raises(BadInputError) as refused:
            read_ranks(file, TOKENS)
        *_, code = shlex.split(str(refused.value))
        exec(code)
        assert json.loads((tmp_path / "freq_2.json").read_text()) == [9, 3]
        assert read_ranks(tmp_path / "freq_2.json", TOKENS) == [9, 3]


@pytest.mark.parametrize(
    ("count", "name", "is_random", "words"),
    [
        (65, None, True, "--draft-vocab 65: the vocabulary has 64 tokens"),
        (3, "ranks.json", False, "ranks.json ranks 2 tokens"),
        (3, None, False, "--draft-vocab 3: which tokens are likeliest is not known"),
        (None, "none.json", False, "none.json: No such file or directory"),
        (None, ".", False, "must be a file, this is a folder"),
    ],
)
def test_tokens_that_cannot_be_chosen(
    count: int | None, name: str | None, is_random: bool, words: str, tmp_path: Path
) -> None:
    written(tmp_path, "[9, 3]")
    file = None if name is None else str(tmp_path / name)
    with pytest.raises(BadInputError, match=re.escape(words)):
        choose_tokens(count, file, TOKENS, is_random=is_random)
