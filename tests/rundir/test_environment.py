"""The machine's record."""

from pathlib import Path

import pytest

import cgbench
from cgbench.rundir.environment import environment


def test_a_copy_without_git_takes_its_commit_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgbench, "__file__", str(tmp_path / "cgbench" / "__init__.py"))
    assert environment()["cgbench_commit"] is None
    monkeypatch.setenv("CGBENCH_COMMIT", "abc123")
    assert environment()["cgbench_commit"] == "abc123"
    (tmp_path / ".git").mkdir()  # not a checkout that git can read
    assert environment()["cgbench_commit"] == "abc123"


def test_it_names_versions_and_no_host() -> None:
    found = environment()
    assert found["cgbench"] == cgbench.__version__ and found["torch"]
    assert "hostname" not in found and "node" not in found
