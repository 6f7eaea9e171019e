"""Shared set-up: small work on few cores, no model hub, GPU tests only where there is a GPU."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Of the processes that tests start too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# To enter what an operation gives in this cache costs more than tracing it again: with symbols for
# sizes, 28 % of the time that tests of compiled layers took.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")
# On a fresh machine g++ takes 20 seconds and more to precompile torch's headers, for few kernels.
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
# The compiler would try six C++ programs to see that it can use what the processor says it has.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import fcntl
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import Any

import pytest

IN_TURN = "imports_in_turn"
TURN = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # Only hands tests to xdist's workers, so it waits for no import.
        return
    if folder := getattr(config, "workerinput", {}).get(IN_TURN):
        config.stash[TURN] = os.open(folder, os.O_RDONLY)
        fcntl.flock(config.stash[TURN], fcntl.LOCK_EX)
    import torch
    from hypothesis import settings

    # Tiny tensors: a second thread costs more than it brings, and xdist wants the cores.
    torch.set_num_threads(1)
    # Properties are about answers, not about how busy the machine is.
    settings.register_profile("no_deadline", deadline=None)
    settings.load_profile("no_deadline")
    # Collection imports and drops little, so looking for what was dropped is in vain.
    gc.disable()


@pytest.fixture(scope="session", autouse=True)
def _probed_once() -> Iterator[None]:
    from tests.support.probes import probed_once

    with probed_once():
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let xdist's workers import in turn on a fresh machine: at once, each of them would compile
    torch, transformers and all tests."""
    torch = find_spec("torch")
    assert torch is not None and torch.origin is not None
    if not (sys.dont_write_bytecode or Path(cache_from_source(torch.origin)).exists()):
        node.workerinput[IN_TURN] = str(node.config.rootpath / "tests")


def pytest_collection_finish(session: pytest.Session) -> None:
    if (turn := session.config.stash.get(TURN, None)) is not None:
        os.close(turn)
    # What is imported by now stays. Tracing makes many objects, and looking through all of them
    # again and again took a twentieth of the time.
    gc.enable()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
