"""Choose decode attention by name: one of the backends, or a function of the user's own."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor

from cgbench.engine.calls import DecodeBackend, Rows, store
from cgbench.errors import BadInputError
from cgbench.kernels.attention import AttentionInput, LayerKv, sdpa
from cgbench.kernels.gpu import runs_kernels


def sdpa_decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
    """Attend by torch's own attention over every slot's whole room, masked.

    This backend is the reference.
    """
    store(kv, rows, qkv)
    return sdpa(kv, qkv, rows.slots, rows.positions, rows.cache.room, rows.masks)


def triton_decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
    """Attend by the Triton kernel, which reads live rows only.

    It packs the heads of a GQA group in one tile, and splits the keys over programs.
    """
    # Imported here, because triton is there only beside a CUDA build of torch.
    from cgbench.kernels import triton_attention

    return triton_attention.decode(kv, qkv, rows.slots, rows.positions, rows.cache.room)


DECODE_BACKENDS: Mapping[str, DecodeBackend] = {"sdpa": sdpa_decode, "triton": triton_decode}


class NamedBackend(NamedTuple):
    """A named backend is a decode backend with the name that records and tables show."""

    name: str
    decode: DecodeBackend


def resolve_backend(name: str, device: torch.device) -> NamedBackend:
    """Return the backend that ``--attention NAME`` means on ``device``.

    ``auto`` takes the fastest. ``package.module:function`` is a ``DecodeBackend`` of the user's
    own. It may be in the current folder. Raise ``BadInputError`` if the name is unknown, or if the
    device cannot run it.
    """
    if ":" in name:
        return NamedBackend(name, _imported(name))
    if name == "auto":
        name = "triton" if runs_kernels(device) else "sdpa"
    if name not in DECODE_BACKENDS:
        raise BadInputError(
            f"--attention {name}: unknown. Choose auto, {', '.join(sorted(DECODE_BACKENDS))}, "
            "or package.module:function"
        )
    if name == "triton" and device.type != "cuda":
        raise BadInputError("--attention triton needs --device cuda. Use --attention sdpa")
    return NamedBackend(name, DECODE_BACKENDS[name])


def _imported(name: str) -> DecodeBackend:
    """Return the function that ``package.module:function`` names."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise BadInputError(f"--attention {name}: must be package.module:function")
    try:
        with _current_folder_importable():
            found = getattr(import_module(module), function)
    # The user's own module may raise anything as it is imported.
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise BadInputError(f"--attention {name}: {type(error).__name__}: {why}") from error
    if not callable(found):
        raise BadInputError(f"--attention {name}: is not a function")
    backend: DecodeBackend = found
    return backend


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Let imports look in the current folder first, unless ``sys.path`` has it already.

    The user's module may add to ``sys.path`` itself, and that stays.
    """
    here = os.getcwd()
    is_new = here not in sys.path
    if is_new:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if is_new and here in sys.path:
            sys.path.remove(here)
