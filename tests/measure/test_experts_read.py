"""Experts read: counted for real rows alone, kept, and what the floor is made of."""

from pathlib import Path

import pytest
import torch

from cgbench.floor.device_limits import DeviceLimits
from cgbench.floor.least_time import Batch, Floor
from cgbench.measure.group import Group, measure_group
from cgbench.measure.session import Session
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import ModelRequest
from cgbench.models.routing import mixtures_of
from cgbench.rundir.summary import samples_frame
from cgbench.tables.floor import account_table
from cgbench.words import Routing
from cgbench.workload.load import random_workload
from tests.support.options import make_options
from tests.support.presets import shrink_presets
from tests.support.session import session_of, with_runners

BATCH = 4
BUCKET = 6
KS = (0, 2)
NUM_EXPERTS, TOP_K = 16, 3


@pytest.fixture(scope="module")
def session() -> Session:
    with pytest.MonkeyPatch.context() as patch:
        shrink_presets(patch)
        where = torch.device("cpu"), torch.float32
        request = ModelRequest(
            "preset:deepseek-v3-6l", None, True, *where, routing=Routing.BALANCED
        )
        model = load_model(request)
    options = make_options(
        spec_tokens=KS,
        batch_sizes=(BATCH,),
        max_batch_size=BUCKET,
        policy="explicit",
        capture_sizes=(BUCKET,),
        max_new_tokens=4,
        context_len=9,
        iterations=12,
        acceptance="synthetic:0.8,0.6",
    )
    return session_of(model, options, random_workload(128, BATCH, 9, 0))


@pytest.fixture(scope="module")
def group(session: Session) -> Group:
    return measure_group(session, BATCH, lambda: None)


def expected(num_tokens: int) -> float:
    return NUM_EXPERTS * (1 - (1 - TOP_K / NUM_EXPERTS) ** num_tokens)


def test_cells_hold_the_experts_of_one_verify(group: Group) -> None:
    for cell in group.cells:
        tokens = BATCH * (cell.spec_tokens + 1)
        assert cell.routing is Routing.BALANCED
        assert cell.experts_read == pytest.approx(expected(tokens), rel=0.05)


def test_the_block_that_was_counted_holds_them(group: Group) -> None:
    cells = {cell.spec_tokens: cell.experts_read for cell in group.cells}
    for block in group.blocks:
        counted = cells[block.spec_tokens] if block.block == 0 else None
        assert block.experts_read == counted


def test_counts_are_those_of_the_timed_iterations(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the mixtures were handed in block 0's timed iterations, counted here by hand."""
    from cgbench.measure import rounds

    layers = mixtures_of(session.spec.target.backbone, None).values()
    forwards: list[int] = []
    blocks: list[list[int]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: forwards.append(args[1].unique().numel()))
        for layer in layers
    ]
    real = rounds.time_iterations

    def time_iterations(*args: object) -> object:
        forwards.clear()
        times = real(*args)  # type: ignore[arg-type]
        blocks.append([*forwards])
        return times

    monkeypatch.setattr(rounds, "time_iterations", time_iterations)
    speculating = {key: each for key, each in session.deployment.runners.items() if key[0]}
    group = measure_group(with_runners(session, speculating), BATCH, lambda: None)
    for handle in handles:
        handle.remove()
    # The untimed iteration before the timed ones is not counted.
    timed = blocks[0][len(layers) :]
    assert group.cells[0].experts_read == pytest.approx(sum(timed) / len(timed))


def test_the_floor_counts_what_was_read(session: Session, group: Group) -> None:
    account = next(each for each in group.accounts if each.spec_tokens == 2)
    lines = [line for line in account.lines if "experts" in line.what and "shared" not in line.what]
    assert {line.stage for line in lines} == {"verify", "draft_1", "draft_2"}
    product = next(p for p in session.floor.work.target.products if p.num_experts > 1)
    for line in lines:
        tokens = BATCH * (1 if line.stage == "draft_2" else 3)
        assert line.experts_expected == pytest.approx(expected(tokens))
        assert line.experts_read is not None
        by_hand = line.count * line.experts_read * product.num_elements * 4
        if line.what.endswith("gate_up_proj"):
            assert line.num_bytes == pytest.approx(by_hand)


def test_drafts_have_counts_of_their_own(session: Session) -> None:
    counts = {"verify": 7.0, "draft_1": 5.0, "draft_2": 2.0}
    # Bound by bytes alone, whatever this machine multiplies.
    floor = Floor(session.floor.work, DeviceLimits(1e9, 1e30), 4)
    lines = floor.account(Batch(BATCH, 2, 9.0, counts))
    read = {line.stage: line.experts_read for line in lines if line.what == "mlp.experts.down_proj"}
    assert read == counts
    fewer = floor.seconds(Batch(BATCH, 2, 9.0, counts | {"verify": 6.0}))
    assert fewer < floor.seconds(Batch(BATCH, 2, 9.0, counts))


def test_explain_shows_counted_beside_expected(session: Session, group: Group) -> None:
    account = next(each for each in group.accounts if each.spec_tokens == 0)
    limits = {"read_bytes_per_s": 1e9, "flops_per_s": 1e9}
    table = account_table(account, limits, samples_frame(group.samples), 200)
    columns = {str(column.header): [*column.cells] for column in table.columns}
    read = [text for text in map(str, columns["experts read"]) if text]
    assert len(read) == 2 and read[0] == read[1]
    assert read[0] == f"{group.cells[0].experts_read:.1f}"
    assert str(expected(BATCH))[:3] in {text[:3] for text in map(str, columns["expected"]) if text}


def test_a_dense_model_reads_no_experts(tmp_path: Path) -> None:
    from tests.support.tiny import load_tiny, make_checkpoint

    model = load_tiny(make_checkpoint(tmp_path, "mimo"))
    assert not model.target.has_mixtures
