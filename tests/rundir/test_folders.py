"""Where a folder may be written is told before any work is done, and nothing is made for it."""

import os
from pathlib import Path

import pytest

from cgbench.errors import RunDirectoryError
from cgbench.rundir.folders import check_new_folder


@pytest.mark.parametrize("name", ["new", "new/below", "empty"])
def test_a_new_or_empty_folder_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    check_new_folder("--output", tmp_path / name, "")
    assert [*tmp_path.iterdir()] == [tmp_path / "empty"]


@pytest.mark.parametrize("name", ["new/below", "empty"])
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whoever runs the tests may be allowed everything."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path not in (tmp_path, tmp_path / "empty"))
    with pytest.raises(RunDirectoryError, match=rf"--repro .*{name}: Permission denied"):
        check_new_folder("--repro", tmp_path / name, "")


def test_a_link_to_nowhere_is_taken_already(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match=r"link: exists already. mend"):
        check_new_folder("--output", tmp_path / "link", "mend")
    with pytest.raises(RunDirectoryError, match=r"link/new: Not a directory"):
        check_new_folder("--output", tmp_path / "link" / "new", "mend")
