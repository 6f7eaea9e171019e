"""Recurrent state: speculation on hybrids is lossless; the state is a function of the length."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from cgbench.engine.recurrent import DecodeStates, RecurrentCache
from cgbench.engine.runner import EagerRunner
from cgbench.kernels.gdn.delta_net import HeadRows, StateShape, most_pending
from cgbench.kernels.gdn.delta_rule import conv_inputs, head_rule
from cgbench.models.heads.families import QWEN
from cgbench.models.loader import LoadedModel
from tests.support.tiny import (
    decode_prompts,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
    reference_model,
)

MAX_NEW_TOKENS = 20
"""So many that every verify length fills the ring of pending rows."""
ROOM = 24 + MAX_NEW_TOKENS + 2 * 16


def ragged_prompts() -> list[list[int]]:
    return [[7], *random_prompts(4)]


@cache
def made(kind: str) -> tuple[LoadedModel, list[list[int]]]:
    """A model of ``kind``, and what transformers decodes with it, one request at a time."""
    with TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name), kind, family=QWEN, seed=3)
        expected = greedy_reference(reference_model(folder), ragged_prompts(), MAX_NEW_TOKENS)
        return load_tiny(folder), expected


@pytest.mark.parametrize(
    ("kind", "k"),
    [
        ("qwen3_next-hybrid", 0),
        ("qwen3_next-hybrid", 3),
        ("qwen3_next-hybrid", 16),
        ("qwen3_5", 1),
        ("qwen3_5", 5),
        ("qwen3_5_moe", 0),
        ("qwen3_5_moe", 3),
    ],
)
def test_hybrids_decode_plain_greedy_tokens(kind: str, k: int) -> None:
    """Five ragged prompts, prefilled in groups."""
    model, expected = made(kind)
    spec = make_speculator(model, max_batch_size=5, room=ROOM, max_spec_tokens=k)
    runner = EagerRunner(spec, make_state(spec, k, 5))
    got = decode_prompts(spec, runner, ragged_prompts(), MAX_NEW_TOKENS, max_num_tokens=48)
    assert got.token_ids == expected


SHAPE = StateShape(num_heads=3, key_size=4, value_size=6, conv_channels=5, conv_rows=3)
QUERY_LEN = 5


def random_rows(batch: int, length: int) -> HeadRows:
    heads = (batch, length, SHAPE.num_heads)
    return HeadRows(
        query=torch.randn(*heads, SHAPE.key_size),
        key=torch.randn(*heads, SHAPE.key_size),
        value=torch.randn(*heads, SHAPE.value_size),
        log_decay=-torch.rand(*heads),
        beta=torch.rand(*heads),
    )


def transformers_rule(rows: HeadRows, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token at a time, from ``state [B, H, Dk, Dv]``."""
    out, last = torch_recurrent_gated_delta_rule(
        rows.query,
        rows.key,
        rows.value,
        g=rows.log_decay,
        beta=rows.beta,
        initial_state=state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    assert last is not None
    return out, last


def first(rows: HeadRows, row: int, count: int) -> HeadRows:
    """The first ``count`` tokens of one row of the batch."""
    names = HeadRows.__dataclass_fields__
    return HeadRows(**{name: getattr(rows, name)[row : row + 1, :count] for name in names})


VERIFIES = 9
"""So many fill the ring more than once."""


@pytest.mark.parametrize("accepted", [[1, 1, 1], [QUERY_LEN] * 3, [2, QUERY_LEN, 1]])
def test_a_verify_goes_on_from_the_accepted_rows(accepted: list[int]) -> None:
    """Ragged over the batch, in slots of any order, each verify run twice from one length.

    A matrix is written where the ring has no room for the rows, and nowhere else. It then holds
    all rows that were accepted.
    """
    torch.manual_seed(0)
    where = {"dtype": torch.float32, "device": torch.device("cpu")}
    cache = RecurrentCache({7: SHAPE}, max_batch_size=4, query_len=QUERY_LEN, **where)
    slots, length = torch.tensor([2, 0, 3]), torch.tensor([9, 4, 1])
    layer = cache.layers[7]
    layer.matrix.normal_()
    for tensor in (layer.keys, layer.updates, layer.log_decays):
        # What was never verified must not be read.
        tensor.fill_(torch.nan)
    cache.length[slots] = length
    expected = layer.matrix[slots]
    num_written = torch.zeros(3, dtype=torch.long)
    for _ in range(VERIFIES):
        rows = random_rows(3, QUERY_LEN)
        pending = length - cache.length[slots]
        is_full = pending + QUERY_LEN > most_pending(QUERY_LEN)
        num_written += is_full
        before = layer.matrix.clone()
        before[slots[is_full]] = expected[is_full]
        for tried in (random_rows(3, QUERY_LEN), rows):
            positions = length[:, None] + torch.arange(QUERY_LEN)
            states = DecodeStates(cache, slots, positions)
            got = head_rule(layer, tried, slots, positions, states.num_pending)
            torch.testing.assert_close(got, transformers_rule(tried, expected)[0])
            torch.testing.assert_close(layer.matrix, before)
        ends = [
            transformers_rule(first(rows, row, count), expected[row : row + 1])[1]
            for row, count in enumerate(accepted)
        ]
        expected = torch.cat(ends)
        length = length + torch.tensor(accepted)
    rows_between = most_pending(QUERY_LEN) - QUERY_LEN + 1
    for count, written in zip(accepted, num_written.tolist(), strict=True):
        # Rows gather until the next verify's no longer fit.
        assert written == (VERIFIES - 1) // -(-rows_between // count)


@pytest.mark.parametrize(("query_len", "most"), [(1, 16), (8, 16), (9, 32), (17, 32), (40, 64)])
def test_a_verifys_rows_fit_beside_no_others_at_least(query_len: int, most: int) -> None:
    assert most_pending(query_len) == most


def test_the_ring_holds_what_the_kernel_sees() -> None:
    """Inputs at a position come back whichever rows were accepted; before the first are zeros."""
    where = {"dtype": torch.float32, "device": torch.device("cpu")}
    cache = RecurrentCache({0: SHAPE}, max_batch_size=1, query_len=QUERY_LEN, **where)
    slots, kept, length = torch.tensor([0]), [torch.zeros(SHAPE.conv_rows, 5)], 0
    for accepted in (1, 4, 2, 5, 3, 1, 5):
        positions = length + torch.arange(QUERY_LEN)[None]
        rows = torch.randn(1, QUERY_LEN, SHAPE.conv_channels)
        got = conv_inputs(cache.layers[0].conv, rows, slots, positions, SHAPE.conv_rows)
        assert torch.equal(got[0, : SHAPE.conv_rows], torch.cat(kept)[-SHAPE.conv_rows :])
        assert torch.equal(got[0, SHAPE.conv_rows :], rows[0])
        kept.append(rows[0, :accepted])
        length += accepted
