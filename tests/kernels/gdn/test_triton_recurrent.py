"""The kernels of a gated delta net's decode steps against torch's operations, which define them."""

import pytest
import torch

from cgbench.engine.recurrent import DecodeStates, RecurrentCache
from cgbench.kernels.gdn.delta_net import DeltaRows, LayerState
from cgbench.kernels.gdn.delta_rule import delta_rule_by_torch, take_up
from tests.support.delta_nets import Case, moved, random_cache, random_net, random_rows
from tests.support.interpreter import run_interpreted

pytest.importorskip("triton")

ITERATIONS = 2


CASES = [
    *(Case(1, 2, 8, 6, query_len, max(query_len, 4)) for query_len in (1, 4, 17)),
    Case(2, 1, 40, 36, 3, 6, has_bias=True),
    Case(2, 3, 12, 10, 2, 2, batch_size=4, taps=3),
]
DEVICE_CASES = [
    *(Case(1, 2, 8, 6, query_len, max(query_len, 4)) for query_len in range(1, 10)),
    *CASES[3:],
    Case(1, 2, 128, 128, 4, 4, batch_size=1),
    Case(1, 1, 96, 80, 3, 6, has_bias=True),
    Case(16, 2, 128, 128, 4, 4, batch_size=64),
    Case(16, 1, 128, 128, 9, 9),
    Case(16, 2, 128, 128, 17, 17),
]


def check_case(case: Case, dtype: torch.dtype, device: str) -> float:
    """A few verifies, ragged, from caches alike; the largest error, relative to each result's
    norm, of what is read and of every slot's state but scratch."""
    from cgbench.kernels.gdn import triton_recurrent

    torch.manual_seed(case.query_len)
    net = random_net(case, dtype, device)
    expected_cache = random_cache(case, dtype, device)
    scratch = expected_cache.scratch_slot
    slots = torch.cat([torch.randperm(scratch)[: case.batch_size], torch.tensor([scratch] * 2)])
    length = torch.randint(1, 2 * case.kept, (case.batch_size,))
    expected_cache.length[slots[:-2].to(device)] = length.to(device)
    begin = length + torch.randint(0, expected_cache.most_pending + 1, length.shape)
    # The ring of one has no room, that of another holds nothing.
    begin[:2] = length[:2] + torch.tensor([expected_cache.most_pending, 0])[: case.batch_size]
    order_decays(expected_cache.layers[0], slots[:-2].to(device), length.to(device))
    got_cache = moved(expected_cache, case, device)
    for tensor in got_cache.layers[0].tensors().values():
        tensor[scratch] = float("nan")
    errors, num_written = [], 0
    for _ in range(ITERATIONS):
        first = torch.cat([begin, torch.zeros(2, dtype=torch.long)])[:, None]
        positions = (first + torch.arange(case.query_len)).to(device)
        rows = random_rows(case, net, dtype, device, by_head=case.taps == 3)
        pending = begin - expected_cache.length[slots[:-2].to(device)].cpu()
        num_written += int((pending + case.query_len > expected_cache.most_pending).sum())
        states = DecodeStates(expected_cache, slots.to(device), positions)
        expected = delta_rule_by_torch(
            expected_cache.layers[0], rows, states.slots, states.positions, states.num_pending
        )
        states = DecodeStates(got_cache, slots.to(device), positions)
        got = triton_recurrent.delta_rule(
            got_cache.layers[0], rows, states.slots, states.positions, states.num_pending
        )
        assert got.shape == expected.shape and got.dtype == expected.dtype
        errors.append(relative_error(got, expected))
        errors += state_errors(got_cache, expected_cache)
        begin += torch.randint(1, case.query_len + 1, begin.shape)
        assert torch.equal(got_cache.length[:-1], expected_cache.length[:-1])
    check_again(got_cache, slots.to(device), positions, rows)
    # Matrices are written sometimes, and not each time.
    assert 0 < num_written < ITERATIONS * case.batch_size, num_written
    return max(errors)


def order_decays(layer: LayerState, slots: torch.Tensor, length: torch.Tensor) -> None:
    """Log decays fall from the matrices' length on."""
    ring = layer.keys.shape[2]
    places = (length[:, None] + torch.arange(ring, device=length.device)) % ring
    layer.log_decays[slots[:, None], :, places] = layer.log_decays[slots].transpose(1, 2)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def state_errors(got: RecurrentCache, expected: RecurrentCache) -> list[float]:
    live = slice(0, expected.scratch_slot)
    pairs = zip(
        got.layers[0].tensors().values(), expected.layers[0].tensors().values(), strict=True
    )
    return [relative_error(ours[live], theirs[live]) for ours, theirs in pairs]


def check_again(
    cache: RecurrentCache, slots: torch.Tensor, positions: torch.Tensor, rows: DeltaRows
) -> None:
    """Run twice from one length, a verify gives the same to the bit."""
    from cgbench.kernels.gdn import triton_recurrent

    runs = []
    for _ in range(2):
        states = DecodeStates(cache, slots, positions)
        out = triton_recurrent.delta_rule(
            cache.layers[0], rows, states.slots, states.positions, states.num_pending
        )
        state = [tensor[:-1].clone() for tensor in cache.layers[0].tensors().values()]
        runs.append([out, *state])
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def check_all() -> int:
    """Every case in the interpreter, which cuts bfloat16 off where a device rounds; their number"""
    pairs = [(case, torch.float32, 2e-6) for case in CASES]
    pairs += [(CASES[1], torch.bfloat16, 2e-2)]
    for case, dtype, most in pairs:
        error = check_case(case, dtype, "cpu")
        assert error < most, (case, dtype, error)
    check_take_up("cpu")
    return len(CASES)


def check_take_up(device: str) -> None:
    """More rows than a program takes, of which some have no room for another verify's."""
    from cgbench.kernels.gdn import triton_recurrent

    torch.manual_seed(0)
    slots = torch.cat([torch.randperm(140), torch.tensor([140] * 2)]).to(device)
    length = torch.randint(1, 50, (141,), device=device)
    positions = length[slots][:, None] + torch.arange(-1, 3, device=device)
    positions += torch.randint(0, 20, (142, 1), device=device)
    positions[-2:] -= positions[-2:, :1].clone()
    expected = length.cpu().clone()
    counts = take_up(expected, slots.cpu(), positions.cpu(), 16)
    before = length.clone()
    got = triton_recurrent.take_up(length, slots, positions, 16)
    assert torch.equal(got.cpu(), counts) and torch.equal(length.cpu(), expected)
    assert counts.min() == 0 and counts.max() == 16
    assert 0 < int((length != before).sum()) < 140 and length[140] == before[140]


def test_interpreter_equals_torch() -> None:
    code = f"from {__name__} import check_all\nprint(check_all(), 'cases')"
    assert f"{len(CASES)} cases" in run_interpreted(code)


@pytest.mark.gpu
@pytest.mark.parametrize("case", DEVICE_CASES, ids=str)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
def test_on_the_device(case: Case, dtype: torch.dtype, most: float) -> None:
    assert check_case(case, dtype, "cuda") < most


@pytest.mark.gpu
def test_taking_up_on_the_device() -> None:
    check_take_up("cuda")
