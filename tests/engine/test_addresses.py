"""Addresses noted at a capture: copying into a tensor keeps them, reassigning it does not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cgbench.engine.addresses import captured_addresses, moved, state_addresses
from cgbench.engine.iteration import Speculator
from cgbench.engine.state import DecodeState
from cgbench.kernels.attention import LayerKv
from tests.support.tiny import load_tiny, make_checkpoint, make_speculator, make_state

K = 3


@pytest.fixture
def spec(tmp_path: Path) -> Speculator:
    return make_speculator(load_tiny(make_checkpoint(tmp_path, "mimo")), max_batch_size=4, room=32)


@pytest.fixture
def state(spec: Speculator) -> DecodeState:
    return make_state(spec, K, 4)


def test_state_kv_weights_and_rotary_buffers_are_all_there(
    spec: Speculator, state: DecodeState
) -> None:
    names = set(captured_addresses(spec, state))
    assert {"state.last", "state.drafts", "state.result", "state.uniforms"} < names
    assert {f"kv.{layer}.{part}" for layer in range(3) for part in ("keys", "values")} < names
    assert {"target.lm_head.weight", "target.model.rotary_emb.inv_freq"} < names
    assert [name for name in names if name.startswith("head.")] != []


def test_copying_moves_nothing(spec: Speculator, state: DecodeState) -> None:
    captured = captured_addresses(spec, state)
    state.clear()
    state.full.last.copy_(torch.ones(4))
    assert moved(captured, captured_addresses(spec, state)) == []


def test_a_reassigned_buffer_has_moved(spec: Speculator, state: DecodeState) -> None:
    captured = captured_addresses(spec, state)
    state.full = replace(state.full, drafts=state.full.drafts.clone())
    assert moved(captured, captured_addresses(spec, state)) == ["state.drafts"]


def test_a_reassigned_kv_tensor_has_moved(spec: Speculator, state: DecodeState) -> None:
    captured = captured_addresses(spec, state)
    kv = spec.cache.layers[1]
    spec.cache.layers[1] = LayerKv(kv.keys, kv.values.clone())
    assert moved(captured, captured_addresses(spec, state)) == ["kv.1.values"]


def test_a_reassigned_weight_has_moved(spec: Speculator, state: DecodeState) -> None:
    captured = captured_addresses(spec, state)
    weight = spec.target.model.lm_head.weight
    weight.data = weight.data.clone()
    assert moved(captured, captured_addresses(spec, state)) == ["target.lm_head.weight"]


def test_a_buffer_that_is_gone_has_moved() -> None:
    assert moved({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ["a"]


def test_views_of_the_first_rows_begin_where_the_buffers_do(state: DecodeState) -> None:
    assert state_addresses(state.rows(2)) == state_addresses(state.full)


def test_a_buffer_without_elements_has_no_address(spec: Speculator) -> None:
    names = state_addresses(make_state(spec, 0, 4).full)
    assert "state.drafts" not in names and "state.last" in names
