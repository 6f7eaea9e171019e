"""transformers' ways to decode: the checkpoint's weights, plain greedy decoding, repeatable."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cgbench.engines import transformers_decode
from cgbench.engines.peer_rounds import PeerError
from cgbench.engines.transformers_decode import TransformersEngine
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, plan_loading
from cgbench.models.presets import PRESETS, Preset
from tests.support.tiny import (
    SHAPE,
    greedy_reference,
    make_checkpoint,
    reference_model,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("peers") / "tiny", "mimo", vocab_size=256)


def plan_for(ref: object) -> Any:
    return plan_loading(Loading(str(ref), None, False, torch.device("cpu"), torch.float32))


def test_the_peer_has_the_checkpoints_weights_and_its_steps_are_counted(tiny: Path) -> None:
    model = transformers_decode.load_peer(plan_for(tiny))
    transformers_decode.check_same_weights(model, reference_model(tiny))
    round_ = transformers_decode.Generate(model, [[1, 2, 3], [4, 5, 6]], 8).round(0)
    assert (round_.steps, round_.tokens) == (7, 14) and round_.seconds > 0
    with torch.no_grad():
        model.get_decoder().norm.weight.mul_(2)
    with pytest.raises(PeerError, match="not this tool's"):
        transformers_decode.check_same_weights(model, reference_model(tiny))


def test_a_preset_is_drawn_again_with_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**SHAPE, "model_type": "mimo", "eos_token_id": 3}
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", config))
    plan = plan_for("preset:small")
    model, ours = transformers_decode.load_peer(plan), load_model(plan).target.model
    transformers_decode.check_same_weights(model, ours)
    for name, weight in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_the_static_forward_is_the_models_own_and_can_be_repeated(tiny: Path) -> None:
    """Set back, it must give the same: the logits of the whole sequence without any cache."""
    model = transformers_decode.load_peer(plan_for(tiny))
    prompt = list(range(20, 32))
    verify = transformers_decode.StaticVerify(model, [prompt], 4, calls=2, compiled=False)
    verify.round(0)
    for layer in verify._cache.layers:
        layer.cumulative_length.fill_(len(prompt))
    with torch.no_grad():
        got = verify._forward()
        whole = model(torch.tensor([prompt + prompt[:4]])).logits[:, -4:]
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


def test_generate_is_plain_greedy_decoding(tiny: Path) -> None:
    """What the peer times is what the rest of the tests hold decoding against."""
    model = transformers_decode.load_peer(plan_for(tiny))
    expected = greedy_reference(reference_model(tiny), [[1, 2, 3]], 8)
    assert greedy_reference(model, [[1, 2, 3]], 8) == expected


def test_each_peer_loads_the_weights_that_it_is_held_against(tiny: Path) -> None:
    reference = reference_model(tiny)
    engine = TransformersEngine(plan_for(tiny), reference, [[1, 2, 3]], spec_tokens=3, new_tokens=4)
    peers = engine.peers()
    assert peers["dynamic"]().round(0).tokens == 3
    assert peers["verify-static"]().round(0).tokens % 4 == 0
    for name in ("static", "verify-compiled"):
        with pytest.raises(PeerError, match="needs a CUDA device"):
            peers[name]()
    with torch.no_grad():
        reference.get_decoder().norm.weight.mul_(2)
    with pytest.raises(PeerError, match="not this tool's"):
        peers["batch"]()
    # A model that was never loaded has no manager to destroy.
    engine.stop()
