"""The kernels between the forwards against torch's operations, which define what they do."""

import pytest
import torch

from cgbench.engine.state import NO_TOKEN, DecodeState
from cgbench.kernels import row_updates
from cgbench.kernels.row_updates import RowState
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

VOCAB, SLOTS = 7, 12
RATES = (0.8, 0.5, 0.0, 1.0, 0.3, 0.6, 0.9, 0.2)

# (rows, columns): one part and several, whole steps and not, one row and many.
SHAPES = [(1, 1), (3, 17), (4, 1024), (2, 4099), (1, 8192), (5, 20_000), (100, 33)]


def random_state(k: int, batch_size: int, eos: tuple[int, ...], seed: int, device: str) -> RowState:
    """Rows in the middle of a decoding: some ended, some at their last token, few ids, so that
    drafts agree and EOS is met."""
    draws = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=draws)

    state = DecodeState(
        spec_tokens=k,
        max_batch_size=batch_size + 2,
        scratch_slot=SLOTS,
        hidden_size=4,
        dtype=torch.float32,
        device=torch.device(device),
        eos_token_ids=eos,
    )
    rows = state.rows(batch_size)
    if eos:
        rows.eos_ids.copy_(torch.tensor(eos))
    rows.active.copy_(integers(0, 2, batch_size))
    rows.tokens_left.copy_(integers(0, k + 3, batch_size))
    rows.seq_len.copy_(integers(0, 50, batch_size))
    rows.slot_of_row.copy_(integers(0, SLOTS, batch_size))
    rows.drafts.copy_(integers(0, VOCAB // 2, batch_size, k))
    rows.uniforms.copy_(torch.rand(rows.uniforms.shape, generator=draws))
    rows.result.fill_(-9)
    return rows


def contents(rows: RowState) -> dict[str, list[int]]:
    names = ("last", "drafts", "seq_len", "slot_of_row", "active", "tokens_left", "result")
    return {name: getattr(rows, name).tolist() for name in names}


def check_updates(device: str) -> int:
    """Accept and commit, of every k, batches and rules; returns the number of rows compared."""
    from cgbench.kernels import triton_rows

    compared = 0
    for seed in range(20):
        for k in (0, 1, 2, 3, 8):
            batch_size, eos = 1 + seed % 6, ((), (2,), (1, 3, 5))[seed % 3]
            rates = RATES[:k] if seed % 2 else None
            # More of the vocabulary than drafts use: some agree, some do not.
            chosen = torch.randint(
                0, VOCAB, (batch_size, k + 1), generator=torch.Generator().manual_seed(seed)
            ).to(device)
            expected, got = (random_state(k, batch_size, eos, seed, device) for _ in range(2))
            row_updates.accept_by_torch(expected, chosen, rates)
            triton_rows.accept(got, chosen, rates)
            assert contents(got) == contents(expected), (seed, k)
            row_updates.commit_by_torch(expected)
            triton_rows.commit(got)
            assert contents(got) == contents(expected), (seed, k)
            compared += batch_size
    return compared


def check_argmax(device: str) -> int:
    """Ties, NaN, rows of nothing but -inf, and rows that lie apart; the number of shapes."""
    from cgbench.kernels import triton_rows

    for num_rows, num_columns in SHAPES:
        draws = torch.Generator().manual_seed(num_columns)
        # Few values, so that the largest comes more than once.
        logits = torch.randint(0, 9, (num_rows, 2, num_columns), generator=draws).to(torch.bfloat16)
        logits[0, 0] = float("-inf")
        logits[-1, 1, num_columns // 2 :] = float("nan")
        logits = logits.to(device)
        for each in (logits, logits[:, 1], logits[:, 0].float()):
            found = triton_rows.argmax(each)
            assert found.dtype == torch.long and found.shape == each.shape[:-1]
            assert torch.equal(found.cpu(), first_of_the_largest(each)), each.shape
    return len(SHAPES)


def first_of_the_largest(logits: torch.Tensor) -> torch.Tensor:
    values = logits.cpu().float().nan_to_num(float("inf"), float("inf"), float("-inf"))
    is_largest = values == values.amax(-1, keepdim=True)
    return is_largest.int().argmax(-1)


def test_interpreter_equals_torch() -> None:
    code = (
        "from tests.kernels.test_row_updates import check_argmax, check_updates\n"
        "print(check_updates('cpu'), check_argmax('cpu'))"
    )
    compared, shapes = map(int, run_interpreted(code).split())
    assert compared > 300 and shapes == len(SHAPES)


@pytest.mark.gpu
def test_on_the_device() -> None:
    assert check_updates("cuda") > 300
    for _ in range(3):  # the counters of arrived programs are zero again
        assert check_argmax("cuda") == len(SHAPES)


def test_the_states_compared_are_not_all_alike() -> None:
    """Every outcome is among them: kept, cut at EOS, cut at the limit, ended before."""
    emitted, ended = set(), set()
    for seed in range(20):
        rows = random_state(3, 1 + seed % 6, (1, 3, 5), seed, "cpu")
        chosen = torch.randint(
            0, VOCAB, rows.out.shape, generator=torch.Generator().manual_seed(seed)
        )
        before = rows.active.clone()
        row_updates.accept_by_torch(rows, chosen, None)
        row_updates.commit_by_torch(rows)
        emitted |= set(rows.num_emitted.tolist())
        ended |= set(zip(before.tolist(), rows.active.tolist(), strict=True))
    assert emitted >= {0, 1, 2} and ended == {(0, 0), (1, 0), (1, 1)}
    assert NO_TOKEN not in rows.out
