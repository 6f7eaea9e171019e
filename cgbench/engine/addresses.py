"""Note where tensors are, because a graph keeps to the addresses that it was captured with.

If a tensor is reassigned instead of copied into, the graph stays on the old memory. It replays
without an error, on stale values. Comparing with the addresses noted at the capture reveals that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields

from torch import Tensor, nn

from cgbench.engine.iteration import Speculator
from cgbench.engine.state import DecodeState
from cgbench.kernels.row_updates import RowState

Addresses = Mapping[str, int]
"""This maps a name to a device address.

It covers row state, KV and recurrent state, and the weights and buffers of target and head.
"""


def captured_addresses(spec: Speculator, state: DecodeState) -> Addresses:
    """Return the address of every tensor that a graph over ``spec`` and ``state`` uses in place."""
    caches = _kv_addresses(spec) | _recurrent_addresses(spec)
    return state_addresses(state.full) | caches | _model_addresses(spec)


def state_addresses(rows: RowState) -> dict[str, int]:
    """Return the addresses of the row state's buffers.

    Views of the first rows begin where the whole buffer does. A buffer of no elements (the drafts
    of k = 0) has no address.
    """
    buffers = {field.name: getattr(rows, field.name) for field in fields(rows)}
    return {f"state.{name}": t.data_ptr() for name, t in buffers.items() if t.numel()}


def moved(captured: Addresses, now: Addresses) -> list[str]:
    """Return the names in ``captured`` that are elsewhere ``now``, or gone."""
    return [name for name, address in captured.items() if now.get(name) != address]


def _kv_addresses(spec: Speculator) -> dict[str, int]:
    return {"kv.request_keys": spec.cache.request_keys.data_ptr()} | {
        f"kv.{layer}.{name}": tensor.data_ptr()
        for layer, kv in spec.cache.layers.items()
        for name, tensor in kv.tensors().items()
    }


def _recurrent_addresses(spec: Speculator) -> dict[str, int]:
    recurrent = spec.cache.recurrent
    tensors = {} if recurrent is None else recurrent.tensors()
    return {f"recurrent.{name}": tensor.data_ptr() for name, tensor in tensors.items()}


def _model_addresses(spec: Speculator) -> dict[str, int]:
    modules: dict[str, nn.Module | None] = {"target": spec.target.model, "head": spec.head}
    return {
        f"{prefix}.{name}": tensor.data_ptr()
        for prefix, module in modules.items()
        if module is not None
        for name, tensor in _tensors(module)
    }


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers. Some buffers, such as rotary frequencies, are in no state
    dict."""
    yield from module.named_parameters()
    yield from module.named_buffers()
