"""Linear-attention layers keep their state in one slot a request, rolled back by length alone.

A key written past the accepted row is harmless. Nothing reads it, and the next iteration overwrites
it. A recurrent state has no rows to leave unread. Here it gets them. Of each of its k + 1 rows
verify keeps what the row adds to the state, in a ring by position. The next verify reads after the
rows that were accepted since, and writes over the others.

The matrices stay as they are while the ring has room for another verify's rows. Then they take up
all accepted rows at once. So a matrix is read by every verify, and written by few (ReplaySSM). A
row's part is smaller than a matrix by half the head's size. The device counts, the host does not.

The state after seq_len rows is a function of slot and seq_len, as KV is. Verify may be run twice
from one length with one result, and re-packing moves nothing. Keeping the state after every row
instead would take (k + 1) times its bytes.

Per head the gated delta rule is S_t = d_t S_(t-1) + k_t u_t with u_t = beta_t (v_t - k_t d_t
S_(t-1)). The output is q_t S_t (Yang et al., Gated Delta Networks, 2024, and transformers'
``torch_recurrent_gated_delta_rule``). Let S be the state before the rows, and D_t the product of
the decays up to row t. Then S_t = D_t S + sum over j <= t of (D_t / D_j) k_j u_j. S is read once
for all rows. The parts (k_j, u_j, log D_j) are kept of row j. They serve later rows alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cgbench.kernels.gdn.delta_net import (
    DeltaRows,
    HeadRows,
    LayerState,
    StateShape,
    kept_rows,
    most_pending,
)
from cgbench.kernels.gdn.delta_rule import delta_rule, gated_norm, head_rows, take_up


class RecurrentCache:
    """A recurrent cache holds the state of every linear-attention layer.

    The last slot is scratch, as in the KV cache. ``length [slots]`` counts the committed tokens
    that the matrices hold. ``prompt`` is a second matrix and ring a layer, with the state after the
    prompt, so that decoding can begin there again. A server would not hold it.
    """

    def __init__(
        self,
        shapes: Mapping[int, StateShape],
        *,
        max_batch_size: int,
        query_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the state, all zero. ``query_len`` is k + 1 of the largest k."""
        num_slots = max_batch_size + 1
        self.scratch_slot = max_batch_size
        self.query_len = query_len
        self.most_pending = most_pending(query_len)
        self.length = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.prompt_length = torch.zeros_like(self.length)
        self.layers = {
            layer_idx: LayerState.zeros(shape, num_slots, query_len, dtype, device)
            for layer_idx, shape in shapes.items()
        }
        self.prompt = {
            layer_idx: (torch.zeros_like(layer.matrix), torch.zeros_like(layer.conv))
            for layer_idx, layer in self.layers.items()
        }

    def begin(self, batch_size: int) -> None:
        """Put slots 0..batch_size - 1 back to where their prefill left them."""
        self.length[:batch_size] = self.prompt_length[:batch_size]
        for layer_idx, layer in self.layers.items():
            matrix, conv = self.prompt[layer_idx]
            layer.matrix[:batch_size] = matrix[:batch_size]
            layer.conv[:batch_size] = conv[:batch_size]

    def tensors(self) -> dict[str, Tensor]:
        """Return every buffer that decoding reads or writes, named by layer and part."""
        named = {
            f"{layer_idx}.{name}": tensor
            for layer_idx, layer in self.layers.items()
            for name, tensor in layer.tensors().items()
        }
        return {"length": self.length, **named}


def cache_bytes(
    shapes: Mapping[int, StateShape], num_slots: int, query_len: int, dtype: torch.dtype
) -> int:
    """Return the bytes that a ``RecurrentCache`` takes, without its lengths."""
    return num_slots * sum(
        2 * shape.num_bytes(dtype.itemsize)
        + kept_rows(query_len) * shape.update_bytes
        + 2 * query_len * shape.conv_channels * dtype.itemsize
        for shape in shapes.values()
    )


class DecodeStates:
    """These are one verify's rows in the cache, at ``slots [B]`` and ``positions [B, S]``.

    Positions are consecutive, and the rows are made once a forward. They read after the rows before
    ``positions[:, 0]`` that were accepted since the matrices' length.
    """

    def __init__(self, cache: RecurrentCache, slots: Tensor, positions: Tensor) -> None:
        self.cache, self.slots, self.positions = cache, slots, positions
        self.num_pending = num_pending(cache, slots, positions)

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """Return what ``rows`` read of the state, normed and gated, ``[B, S, H, Dv]``.

        Keeps what each row adds.
        """
        layer = self.cache.layers[layer_idx]
        return delta_rule(layer, rows, self.slots, self.positions, self.num_pending)


def num_pending(cache: RecurrentCache, slots: Tensor, positions: Tensor) -> Tensor:
    """Return how many rows the layers add to their matrices before ``positions [B, S]``, ``[B]``.

    ``cache.length`` is then what it is after the layers' ``delta_rule``.
    """
    return take_up(cache.length, slots, positions, cache.most_pending)


@dataclass(frozen=True, slots=True)
class PrefillStates:
    """These are whole prompts on their way into the cache's prompt state.

    They have ``slots [B]`` and ``lengths [B]``, and are right-padded.
    """

    cache: RecurrentCache
    slots: Tensor
    lengths: Tensor

    def conv_inputs(self, layer_idx: int, rows: Tensor, num_before: int) -> Tensor:
        """Return ``rows [B, S, C]`` behind zeros, as the convolution reads them.

        The newest rows before each prompt's end enter the ring.
        """
        ring = self.cache.prompt[layer_idx][1]
        inputs = torch.nn.functional.pad(rows, (0, 0, num_before, 0))
        # Row p + num_before of ``inputs`` is position p. A row before the prompt is zero.
        newest = self.lengths[:, None] + torch.arange(num_before, device=rows.device)
        tail = inputs.gather(1, newest[..., None].expand(-1, -1, rows.shape[2]))
        ring[self.slots[:, None], (newest - num_before) % ring.shape[1]] = tail
        return inputs

    def delta_rule(self, layer_idx: int, rows: DeltaRows) -> Tensor:
        """Return what the prompts' rows read of the state, normed and gated, ``[B, S, H, Dv]``.

        Padding leaves the state as it is.
        """
        inputs = self.conv_inputs(layer_idx, rows.mixed, rows.net.state_shape.conv_rows)
        heads = head_rows(rows, inputs)
        positions = torch.arange(rows.num_tokens[1], device=self.slots.device)
        is_prompt = (positions < self.lengths[:, None])[..., None]
        masked = replace(heads, log_decay=heads.log_decay * is_prompt, beta=heads.beta * is_prompt)
        out, matrix = chunked_delta_rule(masked)
        self.cache.prompt[layer_idx][0][self.slots] = matrix
        self.cache.prompt_length[self.slots] = self.lengths
        return gated_norm(rows, out)


def chunked_delta_rule(rows: HeadRows) -> tuple[Tensor, Tensor]:
    """Run transformers' own gated delta rule over whole sequences from an empty state.

    Returns the output ``[B, S, heads, Dv]`` and the last state ``[B, heads, Dk, Dv]`` in float32.
    """
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
