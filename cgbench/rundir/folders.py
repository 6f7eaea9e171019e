"""Check where a command may write a folder of its own."""

import errno
import os
from pathlib import Path

from cgbench.errors import RunDirectoryError


def is_free(path: Path) -> bool:
    """Return whether a folder may be written there: nothing is there, or an empty folder."""
    return not _is_there(path) or (path.is_dir() and not any(path.iterdir()))


EMPTY_FOLDER = "Choose a new or an empty folder"
"""The hint for a folder that is written once."""


def check_new_folder(flag: str, path: Path, hint: str) -> None:
    """Refuse a folder that holds something, cannot be made or cannot be written to, before any work
    is done for it.

    ``hint`` is what to do instead. No folder is made. Raise ``RunDirectoryError``.
    """
    try:
        is_taken = not is_free(path)
        problem = _problem(path)
    except OSError as error:
        raise RunDirectoryError(f"{flag} {path}: {error.strerror}") from error
    if is_taken:
        raise RunDirectoryError(f"{flag} {path}: exists already. {hint}")
    if problem is not None:
        raise RunDirectoryError(f"{flag} {path}: {os.strerror(problem)}")


def _problem(path: Path) -> int | None:
    """Return, by errno, what keeps a folder or files in it from being made. Return None if nothing
    does.
    """
    there = next(each for each in (path, *path.parents) if _is_there(each))
    if not there.is_dir():
        return errno.ENOTDIR
    return None if os.access(there, os.W_OK | os.X_OK) else errno.EACCES


def _is_there(path: Path) -> bool:
    """Return whether something is there, also a link to nowhere."""
    return path.is_symlink() or path.exists()
