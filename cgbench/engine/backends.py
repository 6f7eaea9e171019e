"""Choose decode attention by name: one of the backends, or a function of the user's own."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple, Self

import torch
from torch import Tensor

from cgbench.engine.calls import DecodeBackend, Rows, store
from cgbench.errors import BadInputError, DeviceError
from cgbench.kernels.attention import AttentionInput, LayerKv, sdpa
from cgbench.kernels.gpu import runs_kernels
from cgbench.models.loader import LoadedModel
from cgbench.request.choices import KvDtype


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


FP8_CAPABILITY = (8, 9)
"""GPUs from here on convert FP8 values."""

LATENT = "latent"
"""The absorbed form of latent attention, by its kernel on CUDA and by torch elsewhere."""


class NamedBackend(NamedTuple):
    """A named backend is a decode backend with the name that records and tables show.

    ``keeps_latents``: layers of latent attention keep latents and attend in the absorbed form, so
    they have no use for ``decode``.
    """

    name: str
    decode: DecodeBackend
    keeps_latents: bool = False

    def of(self, model: LoadedModel) -> Self:
        """Return what runs for ``model``, under the name that its rows have.

        Raises ``BadInputError`` where latents are asked for and the model has none.
        """
        if model.keeps_latents:
            return self._replace(name=LATENT)
        if self.name == LATENT:
            raise BadInputError(
                f"--attention {LATENT}: {model.label} has no latent attention. Use auto"
            )
        return self


def resolve_backend(name: str, device: torch.device) -> NamedBackend:
    """Return the backend that ``--attention NAME`` means on ``device``.

    ``auto`` takes the fastest, which of latent attention is the absorbed form. ``latent`` is that
    form by name. Every other name keeps expanded keys and values. ``package.module:function`` is a
    ``DecodeBackend`` of the user's own. It may be in the current folder. Raise ``BadInputError`` if
    the name is unknown, or if the device cannot run it.
    """
    if ":" in name:
        return NamedBackend(name, _imported(name))
    fastest = "triton" if runs_kernels(device) else "sdpa"
    if name in ("auto", LATENT):
        own = name if name == LATENT else fastest
        return NamedBackend(own, DECODE_BACKENDS[fastest], keeps_latents=True)
    if name not in DECODE_BACKENDS:
        names = ", ".join(sorted({*DECODE_BACKENDS, LATENT}))
        raise BadInputError(
            f"--attention {name}: unknown. Choose auto, {names}, or package.module:function"
        )
    if name == "triton" and device.type != "cuda":
        raise BadInputError("--attention triton needs --device cuda. Use --attention sdpa")
    return NamedBackend(name, DECODE_BACKENDS[name])


def check_kv_dtype(kv_dtype: KvDtype, attention: NamedBackend, device: torch.device) -> None:
    """Check that ``attention`` reads keys and values of ``kv_dtype`` on ``device``.

    Raise ``BadInputError`` for a function of the user's own, and ``DeviceError`` for a GPU whose
    instructions lack FP8.
    """
    if kv_dtype == KvDtype.AUTO:
        return
    if ":" in attention.name:
        raise BadInputError(
            f"--kv-dtype {kv_dtype}: --attention {attention.name} reads keys and values in the "
            "model's dtype. Use --attention auto, sdpa or triton"
        )
    if attention.decode is triton_decode:
        capability = torch.cuda.get_device_capability(device)
        if capability < FP8_CAPABILITY:
            major, minor = capability
            raise DeviceError(
                f"--kv-dtype {kv_dtype}: the kernel needs compute capability 8.9, and this GPU has "
                f"{major}.{minor}. Use --attention sdpa"
            )


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
