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

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # Only hands tests to xdist's workers, so it waits for no import.
        return
    import torch
    from hypothesis import settings

    # Tiny tensors: a second thread costs more than it brings, and xdist wants the cores.
    torch.set_num_threads(1)
    # Properties are about answers, not about how busy the machine is.
    settings.register_profile("no_deadline", deadline=None)
    settings.load_profile("no_deadline")
    # Collection imports and drops little, so looking for what was dropped is in vain.
    gc.disable()


def pytest_collection_finish() -> None:
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
