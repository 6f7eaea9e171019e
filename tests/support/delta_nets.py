"""Gated delta nets with random weights, rows and state."""

from dataclasses import dataclass

import torch

from cgbench.engine.recurrent import RecurrentCache
from cgbench.kernels.gdn.delta_net import DeltaNet, DeltaRows


@dataclass(frozen=True)
class Case:
    """``kept`` rows have room in the state, of which a verify uses ``query_len``."""

    key_heads: int
    group: int
    key_size: int
    value_size: int
    query_len: int
    kept: int
    batch_size: int = 2
    taps: int = 4
    has_bias: bool = False


def random_cache(case: Case, dtype: torch.dtype, device: str) -> RecurrentCache:
    """One layer's state in the middle of a decoding, with rows pending in every slot; what may
    not be read, a later row's part or all of scratch, is large."""
    cache = RecurrentCache(
        {0: random_net(case, dtype, "cpu").state_shape},
        max_batch_size=case.batch_size + 1,
        query_len=case.kept,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    layer = cache.layers[0]
    layer.matrix.normal_()
    layer.conv.normal_()
    layer.keys.normal_().div_(case.key_size**0.5)
    layer.updates.normal_()
    layer.log_decays.copy_(-torch.rand(layer.log_decays.shape).cumsum(-1))
    for tensor in layer.tensors().values():
        tensor[cache.scratch_slot] = 1e4
    return moved(cache, case, device)


def moved(cache: RecurrentCache, case: Case, device: str) -> RecurrentCache:
    """A copy of ``cache`` on ``device``."""
    copy = RecurrentCache(
        {0: random_net(case, cache.layers[0].conv.dtype, "cpu").state_shape},
        max_batch_size=case.batch_size + 1,
        query_len=case.kept,
        dtype=cache.layers[0].conv.dtype,
        device=torch.device(device),
    )
    for name, tensor in copy.tensors().items():
        tensor.copy_(cache.tensors()[name])
    return copy


def random_net(case: Case, dtype: torch.dtype, device: str) -> DeltaNet:
    heads = case.key_heads * case.group
    channels = 2 * case.key_heads * case.key_size + heads * case.value_size
    draws = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws).to(dtype).to(device)

    return DeltaNet(
        conv_weight=normal(channels, case.taps),
        conv_bias=normal(channels) if case.has_bias else None,
        activation="silu",
        a_log=normal(heads) - 1,
        # Steps on all of softplus: lost in the 1 it is added to, and past where it bends.
        dt_bias=8 * normal(heads),
        norm_weight=normal(case.value_size),
        norm_epsilon=1e-6,
        num_key_heads=case.key_heads,
        num_heads=heads,
        key_size=case.key_size,
        value_size=case.value_size,
    )


def random_rows(
    case: Case, net: DeltaNet, dtype: torch.dtype, device: str, *, by_head: bool = False
) -> DeltaRows:
    """Of all requests and two padded rows; side by side, as a packed product leaves them.

    ``by_head``: a key head's columns lie together, as Qwen3-Next projects them.
    """
    shape = (case.batch_size + 2, case.query_len)
    sizes = [case.key_size] * 2 + [case.group * case.value_size] * 2 + [case.group] * 2
    together = torch.randn(*shape, case.key_heads * sum(sizes)).to(dtype).to(device)
    if by_head:
        cuts = [case.key_heads * sum(part) for part in (sizes[:4], sizes[4:])]
        heads, gates = (
            part.unflatten(-1, (case.key_heads, -1)) for part in together.split(cuts, dim=-1)
        )
        return DeltaRows(net, *heads.split(sizes[:4], dim=-1), *gates.split(sizes[4:], dim=-1))
    parts = together.split([case.key_heads * size for size in sizes], dim=-1)
    return DeltaRows(net, *(part.unflatten(-1, (case.key_heads, -1)) for part in parts))
