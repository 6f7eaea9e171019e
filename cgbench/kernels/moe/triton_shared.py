"""Let a shared expert run inside the experts' launches, as further programs of the same grids.

A shared expert of n times the experts' inner size is n pieces, each the size of an expert. A piece
has programs of its own for every block of tokens. They come first in a grid, because they may take
longest, and because they can ask for their weights before the router has chosen. Pairs of a piece
and a token are numbered behind those of experts: ``num_tokens * TOP_K + piece * num_tokens +
token``. So both kinds share the buffers of activations and of parts.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from cgbench.kernels.linear import gated_linear, linear
from cgbench.kernels.moe.expert_products import Choice, Experts, SharedExpert

SHARED_NUMBERS = ("num_shared", "token_blocks")
"""These arguments of a product's kernel change with the number of tokens."""

COLUMNS_A_STEP = tl.constexpr(2048)
"""A shared expert's gate is multiplied by this many columns at once."""

MOST_TOKENS = 256
"""Of more tokens than these, a shared expert's products are the library's."""

MOST_TOKENS_IN_PIECES = 128
"""The same of a shared expert as large as several experts.

A program reads its weights once for each block of tokens, which the library does less often.
ERNIE-4.5-21B's layer of 256 tokens took 5 % longer with it inside, and of 64 tokens 1 %.
Qwen3.5-35B's took 4 to 5 % less time at both (results/h200/shared-experts.md).
"""


@triton.jit
def place_of(num_shared, token_blocks):
    """Return what this program is for.

    Returns whether it is a shared expert's, its tile, its piece, its block of tokens, and its place
    among the programs of routed experts. That is negative for a shared expert's program. Programs
    of one tile are next to each other, so that L2 has for one what another reads of the weights.
    """
    group = tl.program_id(1)
    is_shared = group < num_shared
    place = group * tl.num_programs(0) + tl.program_id(0)
    of_tile = place // token_blocks
    tile = tl.where(is_shared, of_tile % tl.num_programs(0), tl.program_id(0))
    piece = of_tile // tl.num_programs(0)
    return is_shared, tile, piece, place % token_blocks, group - num_shared


@triton.jit  # type: ignore[untyped-decorator]
def is_padded(token, slots, scratch_slot, query_len, is_token, HAS_PADDING: tl.constexpr):
    """Return whether each ``token`` is padding."""
    if HAS_PADDING:
        slot = tl.load(slots + token // query_len, mask=is_token, other=0)
        padded = slot == scratch_slot
    else:
        padded = token < 0
    return padded


@triton.jit
def store_weight(x, gate, shared_weights, token, num_inputs):
    """Store the weight of a shared expert for one token: the sigmoid of its product with ``gate``.

    It is rounded where torch's operations round.
    """
    k = tl.arange(0, COLUMNS_A_STEP)
    total = tl.zeros([COLUMNS_A_STEP], tl.float32)
    row = x + token.to(tl.int64) * num_inputs
    for k0 in range(0, num_inputs, COLUMNS_A_STEP):
        inside = k0 + k < num_inputs
        values = tl.load(row + k0 + k, mask=inside, other=0.0).to(tl.float32)
        total += values * tl.load(gate + k0 + k, mask=inside, other=0.0).to(tl.float32)
    kind = shared_weights.dtype.element_ty
    logit = tl.sum(total, 0).to(kind).to(tl.float32)
    tl.store(shared_weights + token, (1.0 / (1.0 + tl.exp(-logit))).to(kind))


@triton.jit  # type: ignore[untyped-decorator]
def sum_of_pieces(
    parts,
    shared_weights,
    token,
    first,
    num_tokens,
    n,
    num_outputs,
    is_summed,
    PIECES: tl.constexpr,
    HAS_GATE: tl.constexpr,
):
    """Return a shared expert's part of a token's outputs ``n``, in the order of its pieces.

    ``first`` is the first piece's pair of token 0. What is not ``is_summed`` is 0.
    """
    worth = 1.0
    if HAS_GATE:
        worth = tl.load(shared_weights + token, cache_modifier=".cg").to(tl.float32)
    total = tl.zeros(n.shape, tl.float32)
    for piece in tl.static_range(PIECES):
        pair = (first + piece * num_tokens + token).to(tl.int64)
        part = tl.load(
            parts + pair * num_outputs + n, mask=is_summed, other=0.0, cache_modifier=".cg"
        )
        total += part.to(tl.float32)
    return worth * total


class SharedCall(NamedTuple):
    """A shared call is a shared expert beside the experts whose launches it runs in.

    ``weights [T]`` are what its gate makes, and nothing without a gate.
    """

    shared: SharedExpert
    pieces: int
    num_tokens: int
    weights: Tensor | None

    @property
    def num_pairs(self) -> int:
        """Return the number of pairs of a piece and a token."""
        return self.pieces * self.num_tokens


def most_tokens_with(experts: Experts) -> int:
    """Return up to how many tokens the shared expert of ``experts`` runs in their launches."""
    shared = experts.shared
    if shared is None or shared.intermediate_size == experts.intermediate_size:
        return MOST_TOKENS
    return MOST_TOKENS_IN_PIECES


def shared_call(experts: Experts, x: Tensor) -> SharedCall | None:
    """Return the call of the shared expert of ``experts``, or None if there is none."""
    shared = experts.shared
    if shared is None:
        return None
    weights = None if shared.gate is None else x.new_empty(len(x))
    pieces = shared.intermediate_size // experts.intermediate_size
    return SharedCall(shared, pieces, len(x), weights)


class SharedProduct(NamedTuple):
    """A shared product is what a product's kernel takes of a shared expert."""

    arguments: tuple[Any, ...]
    """They are weights, their scale, its row blocks, inner columns, groups and token blocks."""
    constants: dict[str, int]
    num_groups: int


NO_PRODUCT = SharedProduct(
    (None, None, None, 0, 0, 1),
    {"SHARED_SCALE_COLUMNS": 0},
    0,
)


def shared_product(call: SharedCall | None, *, is_down: bool, block_m: int) -> SharedProduct:
    """Return what the kernel of one of both products takes, for ``block_m`` tokens a tile."""
    if call is None:
        return NO_PRODUCT
    shared = call.shared
    weight, scales = shared.gate_up, shared.gate_up_scales
    if is_down:
        weight, scales = shared.down, shared.down_scales
    blocks = triton.cdiv(call.num_tokens, block_m)
    num_groups = call.pieces * blocks
    constants = {
        "SHARED_SCALE_COLUMNS": 0 if scales is None else scales.scale.shape[1],
    }
    of_scales: tuple[Tensor | None, Tensor | None] = scales or (None, None)
    arguments = weight, *of_scales, shared.intermediate_size, num_groups, blocks
    return SharedProduct(arguments, constants, num_groups)


def shared_by_products(
    experts: Experts, x: Tensor, choice: Choice, residual: Tensor | None
) -> Tensor:
    """Return ``residual`` plus the shared expert's part, by products of their own."""
    shared = experts.shared
    assert shared is not None
    of_gate_up: tuple[Tensor | None, Tensor | None] = shared.gate_up_scales or (None, None)
    of_down: tuple[Tensor | None, Tensor | None] = shared.down_scales or (None, None)
    activated = gated_linear(x, shared.gate_up, None, *of_gate_up, experts.is_w8a8)
    part = linear(activated, shared.down, None, *of_down, experts.is_w8a8)
    weight = shared.weight_of(x)
    if weight is not None:
        part = weight * part
    if choice.padding is not None:
        part = part.masked_fill(choice.padding.is_padding()[:, None], 0.0)
    return part if residual is None else residual + part
