"""Faults to plant in the kernels of latent attention. Each changes one place of their source.

The kernels are compiled from text, so the text is what is changed. A faulty copy is a module of its
own, and the engine's kernels stay as they are.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch


class Fault(NamedTuple):
    """``right`` stands once in the file of ``module``, and is replaced by ``wrong``."""

    module: str
    right: str
    wrong: str


FAULTS = {
    "rotary_at_the_wrong_offset": Fault(
        "triton_latent",
        "of_row[:, None] + RANK + r[None, :]",
        "of_row[:, None] + RANK - ROTARY + r[None, :]",
    ),
    "new_rotary_at_the_wrong_offset": Fault(
        "triton_latent",
        "from_call[:, None] + RANK + r[None, :]",
        "from_call[:, None] + RANK - ROTARY + r[None, :]",
    ),
    "w_uv_of_another_head": Fault(
        "triton_heads",
        "rows_of = (h * HEAD_ROWS + FIRST_ROW + n)[None, :]",
        "rows_of = ((h ^ 1) * HEAD_ROWS + FIRST_ROW + n)[None, :]",
    ),
    "w_uk_where_w_uv_belongs": Fault(
        "triton_heads", "FIRST_ROW=weights.key_size if is_value else 0", "FIRST_ROW=0"
    ),
    "latent_row_written_twice": Fault(
        "triton_latent",
        "            tl.store(to_cache[:, None] + c[None, :], latent, mask=keep)\n",
        "            tl.store(to_cache[:, None] + c[None, :], latent, mask=keep)\n"
        "            twice = to_cache + RANK + ROTARY\n"
        "            tl.store(twice[:, None] + c[None, :], latent, mask=keep)\n",
    ),
    "causal_tail_one_row_too_wide": Fault(
        "triton_latent", "(n[None, :] <= s[:, None])", "(n[None, :] <= s[:, None] + 1)"
    ),
    "row_past_the_length_read": Fault("triton_latent", "live = n < high", "live = n <= high"),
    "last_split_left_out": Fault(
        "triton_latent_merge", "used = split <= division", "used = split < division"
    ),
    "new_rows_in_every_split": Fault(
        "triton_latent", "if split == split_of_new:", "if split <= split_of_new:"
    ),
    "nothing_written": Fault("triton_latent", "if tile == 0:", "if tile == 1000:"),
}


def is_seen(name: str, error: Callable[..., float], *, below: float) -> bool:
    """Return whether ``error`` fails or is not ``below`` its limit with the fault planted."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = _faulty(FAULTS[name], Path(folder))
        try:
            return not error(torch.float32, kernels) < below
        except AssertionError:
            return True


def _faulty(fault: Fault, folder: Path) -> ModuleType:
    """``triton_latent`` with the fault in it, or in the products that it calls."""
    from cgbench.kernels.mla import (
        triton_heads,
        triton_latent,
        triton_latent_merge,
    )

    latent = _copy(triton_latent, folder, fault if fault.module == "triton_latent" else None)
    for part in (triton_heads, triton_latent_merge):
        name = part.__name__.rpartition(".")[2]
        if fault.module == name:
            setattr(latent, name, _copy(part, folder, fault))
    return latent


def _copy(module: ModuleType, folder: Path, fault: Fault | None) -> ModuleType:
    assert module.__file__ is not None
    text = Path(module.__file__).read_text(encoding="utf-8")
    if fault is not None:
        assert text.count(fault.right) == 1, fault
        text = text.replace(fault.right, fault.wrong)
    name = f"faulty_{module.__name__.rpartition('.')[2]}"
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy
    spec.loader.exec_module(copy)
    return copy
