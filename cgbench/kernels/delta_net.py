"""What a gated delta net's recurrence takes, and what stands around it, as in transformers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StateShape:
    """What one linear-attention layer keeps of a request, however long it is.

    A ``[num_heads, key_size, value_size]`` matrix, float32 as transformers keeps it, and the
    ``conv_rows`` newest of the convolution's inputs, of ``conv_channels`` each.
    """

    num_heads: int
    key_size: int
    value_size: int
    conv_channels: int
    conv_rows: int

    @property
    def matrix_elements(self) -> int:
        """Numbers in the matrices of all heads."""
        return self.num_heads * self.key_size * self.value_size

    def num_bytes(self, itemsize: int) -> int:
        """Bytes of a request's state; ``itemsize`` is of the model's dtype."""
        matrix = self.matrix_elements * torch.float32.itemsize
        return matrix + self.conv_rows * self.conv_channels * itemsize

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Bytes kept of each verified row, from which the state after it is made."""
        matrix = self.num_heads * (self.key_size + self.value_size + 1) * torch.float32.itemsize
        return matrix + self.conv_channels * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Sizes and weights of a gated delta net that its recurrence takes.

    ``conv_weight [C, conv_rows + 1]`` and ``conv_bias [C]``, where C holds the query and key of
    ``num_key_heads`` and the value of ``num_heads``; ``a_log [num_heads]`` and
    ``dt_bias [num_heads]``, of the decay. Each key head serves a group of value heads.
    """

    conv_weight: Tensor
    conv_bias: Tensor | None
    activation: str
    a_log: Tensor
    dt_bias: Tensor
    num_key_heads: int
    num_heads: int
    key_size: int
    value_size: int

    @property
    def state_shape(self) -> StateShape:
        channels, taps = self.conv_weight.shape
        return StateShape(self.num_heads, self.key_size, self.value_size, channels, taps - 1)


@dataclass(frozen=True, slots=True)
class DeltaRows:
    """Rows as a gated delta net projects them: ``mixed [B, S, C]``, the convolution's input, and
    ``rate`` and ``time_step [B, S, num_heads]``, from which beta and the decay are made."""

    net: DeltaNet
    mixed: Tensor
    rate: Tensor
    time_step: Tensor


@dataclass(frozen=True, slots=True)
class HeadRows:
    """Rows for the gated delta rule, ``[B, S, heads, ...]``: ``query`` and ``key`` not normed yet,
    ``log_decay`` at most 0, ``beta`` how much of a row enters the state."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    beta: Tensor


def head_rows(rows: DeltaRows, inputs: Tensor) -> HeadRows:
    """``rows`` convolved and cut into heads; ``inputs [B, before + S, C]`` are ``rows.mixed``
    behind what the convolution sees before them."""
    net = rows.net
    mixed = _convolve(net, inputs)[:, inputs.shape[1] - rows.mixed.shape[1] :]
    key_dim = net.num_key_heads * net.key_size
    query, key, value = mixed.split([key_dim, key_dim, net.num_heads * net.value_size], dim=-1)
    group = net.num_heads // net.num_key_heads
    query, key = (
        each.unflatten(-1, (net.num_key_heads, net.key_size)).repeat_interleave(group, dim=2)
        for each in (query, key)
    )
    return HeadRows(
        query=query,
        key=key,
        value=value.unflatten(-1, (net.num_heads, net.value_size)),
        # In float32: in half precision the exponent of A_log may overflow.
        log_decay=-net.a_log.float().exp() * F.softplus(rows.time_step.float() + net.dt_bias),
        beta=rows.rate.sigmoid(),
    )


def _convolve(net: DeltaNet, rows: Tensor) -> Tensor:
    """The causal convolution and its activation over ``rows [B, S, C]``."""
    # Imported here, for only these models need it.
    from transformers.models.qwen3_next.modeling_qwen3_next import causal_conv1d_fn

    out: Tensor = causal_conv1d_fn(
        rows.transpose(1, 2), net.conv_weight, net.conv_bias, activation=net.activation
    )
    return out.transpose(1, 2)


def chunked_delta_rule(rows: HeadRows) -> tuple[Tensor, Tensor]:
    """transformers' own gated delta rule over whole sequences from an empty state: the output
    ``[B, S, heads, Dv]`` and the last state ``[B, heads, Dk, Dv]`` in float32."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    out, state = torch_chunk_gated_delta_rule(
        rows.query,
        rows.key,
        rows.value,
        g=rows.log_decay,
        beta=rows.beta,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    assert state is not None
    return out, state
