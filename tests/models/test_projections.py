"""Packed projections: the same outputs, names and values, and no second copy of a weight."""

from pathlib import Path

import pytest
import torch
from torch import nn

from cgbench.models.projections import HandedOut, PackedFirst, pack, pack_projections
from tests.support.tiny import load_tiny, make_checkpoint, reference_model

torch.manual_seed(0)


def linears(*sizes: int, bias: bool = True) -> list[nn.Linear]:
    return [nn.Linear(8, size, bias=bias) for size in sizes]


@pytest.mark.parametrize("bias", [True, False])
def test_every_part_is_its_own_projection(bias: bool) -> None:
    apart = linears(12, 4, 4, bias=bias)
    x = torch.randn(2, 3, 8)
    expected = [each(x) for each in apart]
    for got, want in zip([each(x) for each in pack(apart)], expected, strict=True):
        torch.testing.assert_close(got, want)


def test_weights_keep_their_values_and_are_views_of_one_tensor() -> None:
    apart = linears(12, 4)
    weights = [each.weight.clone() for each in apart]
    first, other = pack(apart)
    assert torch.equal(first.weight, weights[0]) and torch.equal(other.weight, weights[1])
    storage = first.weight.untyped_storage().data_ptr()
    assert other.weight.untyped_storage().data_ptr() == storage
    assert not any(each.weight.numel() for each in apart)


def test_another_order_of_calls_is_noticed() -> None:
    first, other = pack(linears(12, 4))
    with pytest.raises(AssertionError):
        other(torch.randn(1, 8))
    first(torch.randn(1, 8))
    with pytest.raises(AssertionError, match="another order"):
        other(torch.randn(1, 8))


def test_a_part_is_handed_out_once_and_not_kept() -> None:
    first, other = pack(linears(12, 4))
    x = torch.randn(1, 8)
    first(x)
    other(x)
    assert isinstance(other, HandedOut) and other.computed is None


@pytest.mark.parametrize("kind", ["llama", "qwen2", "deepseek_v3", "qwen3_moe", "gemma3_text"])
def test_a_loaded_model_is_packed_and_answers_as_transformers(tmp_path: Path, kind: str) -> None:
    folder = make_checkpoint(tmp_path, kind)
    reference = reference_model(folder)
    loaded = load_tiny(folder)
    assert loaded.head is not None
    for module in (loaded.target.model, loaded.head):
        assert any(isinstance(part, PackedFirst) for part in module.modules())
    ours = loaded.target.model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert not [name for name in ours if "packed" in name]


def test_projections_of_another_kind_are_left_alone() -> None:
    class Quantised(nn.Linear):
        pass

    parent = nn.Module()
    parent.q_proj, parent.k_proj, parent.v_proj = linears(4, 4, 4)
    parent.gate_proj, parent.up_proj = Quantised(8, 4), nn.Linear(8, 4)
    mixed = nn.Module()
    mixed.gate_proj, mixed.up_proj = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
    assert pack_projections(nn.ModuleList([parent, mixed])) == 1
    assert isinstance(parent.q_proj, PackedFirst)
    assert type(parent.up_proj) is nn.Linear and type(mixed.up_proj) is nn.Linear


def test_a_delta_nets_projections_of_two_kinds_are_two_products() -> None:
    """One product of all four where they are alike, and one of each kind where they are not."""
    names = "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"
    for is_mixed in (False, True):
        parent, layers = nn.Module(), linears(12, 4, 2, 2, bias=False)
        for name, layer in zip(names, layers, strict=True):
            setattr(parent, name, layer.bfloat16() if is_mixed and name[-1] in "ba" else layer)
        kinds = [layer.weight.dtype for layer in layers]
        x = torch.randn(3, 8)
        expected = [layer(x.to(kind)) for layer, kind in zip(layers, kinds, strict=True)]
        assert pack_projections(parent) == 1 + is_mixed
        firsts = [name for name in names if isinstance(getattr(parent, name), PackedFirst)]
        assert firsts == ["in_proj_qkv"] + ["in_proj_b"] * is_mixed
        of_kind = {kind: x.to(kind) for kind in kinds}
        for name, kind, want in zip(names, kinds, expected, strict=True):
            torch.testing.assert_close(getattr(parent, name)(of_kind[kind]), want)
