"""What is refused of quantised checkpoints: by name, with the file, in one line."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Config

from cgbench.errors import BadInputError, MissingHeadError, ModelError, UnsupportedModelError
from cgbench.kernels.fp8.block_scales import has_nan_codes
from cgbench.models import loader
from cgbench.models.heads.families import DEEPSEEK, MIMO
from cgbench.models.quantised.scheme import read_scheme
from cgbench.request.choices import QuantMode
from cgbench.request.parts import CaptureRequest, ModelRequest
from cgbench.request.peers_request import PeersRequest
from tests.support.fp8 import (
    FINE_GRAINED,
    by_channels,
    compressed,
    edit_tensors,
    make_fp8_checkpoint,
)
from tests.support.tiny import SHAPE, edit_config, load_tiny

WEIGHT = "model.layers.1.mlp.down_proj.weight"
SCALE = f"{WEIGHT}_scale_inv"
HEAD_WEIGHT = "model.mtp_layers.0.mlp.up_proj.weight"

NVFP4 = compressed("group") | {"format": "nvfp4-pack-quantized"}
INT4 = compressed("group") | {"format": "pack-quantized"}
INT8 = compressed("channel") | {"format": "int-quantized"}


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "quant_method awq.*AWQ"),
        ({"quant_method": "gptq", "bits": 4}, "quant_method gptq.*GPTQ"),
        ({"quant_method": "mxfp4"}, "quant_method mxfp4.*MXFP4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_method modelopt.*NVFP4"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "quark"}, "quant_method quark"),
        (NVFP4, "compressed-tensors.*NVFP4"),
        (INT4, "compressed-tensors.*packed integers"),
        (INT8, "compressed-tensors.*integers of eight bits"),
        (FINE_GRAINED | {"fmt": "e5m2"}, "format e5m2"),
        (FINE_GRAINED | {"weight_block_size": [96, 128]}, r"weight_block_size \[96, 128\]"),
    ],
)
def test_other_quantisation_is_refused_by_name(stated: dict[str, Any], name: str) -> None:
    config = Qwen3Config(**SHAPE, quantization_config=stated)
    with pytest.raises(UnsupportedModelError, match=name) as error:
        read_scheme(config, "Qwen3ForCausalLM")
    assert "\n" not in str(error.value)
    if "weight_block_size" not in name:
        assert "FP8" in str(error.value) and "bfloat16" in str(error.value)


@pytest.fixture
def fp8_folder(tmp_path: Path) -> Path:
    return make_fp8_checkpoint(tmp_path, "mimo", MIMO)[0]


def changed(value: float) -> Callable[[Tensor], Tensor]:
    def change(scale: Tensor) -> Tensor:
        scale = scale.clone()
        scale[0, 0] = value
        return scale

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scale: None, r"its scales \(.*down_proj.weight_scale_inv\) are missing"),
        (lambda scale: scale[:, :1].contiguous(), r"of shape \(2, 1\): must be \(2, 3\)"),
        (lambda scale: scale.T.contiguous(), r"of shape \(3, 2\): must be \(2, 3\)"),
        (lambda scale: scale.to(torch.int32), "stored as I32: scales must be"),
        (changed(0.0), "holds 0.0: scales must be above zero"),
        (changed(-1.0), "holds -1.0: scales must be above zero"),
        (changed(math.nan), "holds nan: scales must be above zero"),
        (changed(math.inf), "holds inf: scales must be above zero and finite"),
    ],
    ids=["missing", "shape", "transposed", "integers", "zero", "negative", "nan", "infinite"],
)
def test_bad_scales_are_named(fp8_folder: Path, change: Any, message: str) -> None:
    scale = load_file(fp8_folder / "model.safetensors")[SCALE]
    edit_tensors(fp8_folder, **{SCALE: change(scale)})
    with pytest.raises(ModelError, match=message) as error:
        load_tiny(fp8_folder)
    assert SCALE in str(error.value) and "\n" not in str(error.value)


def with_nan(weight: Tensor, code: int) -> Tensor:
    """One number in the middle, of which no rounding could make a NaN."""
    codes = weight.view(torch.uint8).clone()
    codes[-1, 3] = code
    return codes.view(weight.dtype)


@pytest.mark.parametrize("code", [0x7F, 0xFF])
@pytest.mark.parametrize("name", [WEIGHT, HEAD_WEIGHT])
def test_a_weight_that_holds_no_number_is_named(fp8_folder: Path, name: str, code: int) -> None:
    weight = load_file(fp8_folder / "model.safetensors")[name]
    assert not has_nan_codes(weight)
    edit_tensors(fp8_folder, **{name: with_nan(weight, code)})
    with pytest.raises(ModelError, match=r"in model.safetensors holds NaN .*0x7f or 0xff") as error:
        load_tiny(fp8_folder)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_nan_among_an_experts_weights_names_its_file(tmp_path: Path) -> None:
    """The parameter is fused of many tensors, which lie in several files."""
    folder, _ = make_fp8_checkpoint(tmp_path, "qwen3_moe", DEEPSEEK, num_shards=3)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(each for each in index if each.endswith("mlp.experts.5.up_proj.weight"))
    file = folder / index[name]
    tensors = load_file(file)
    tensors[name] = with_nan(tensors[name], 0xFF)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} in {file.name} holds NaN"):
        load_tiny(folder)


def test_largest_and_zero_codes_are_numbers() -> None:
    codes = torch.tensor([0x00, 0x80, 0x7E, 0xFE, 0x01, 0x77], dtype=torch.uint8)
    assert not has_nan_codes(codes.view(torch.float8_e4m3fn))
    assert codes.view(torch.float8_e4m3fn).float().isfinite().all()


def test_a_config_that_promises_fp8_and_files_that_hold_none(tmp_path: Path) -> None:
    _, plain = make_fp8_checkpoint(tmp_path, "mimo", MIMO)
    edit_config(plain, quantization_config=FINE_GRAINED)
    with pytest.raises(ModelError, match=r"declares FP8 weights .*no tensor is stored as F8_E4M3"):
        load_tiny(plain)


def test_a_plain_weight_that_has_scales(fp8_folder: Path) -> None:
    edit_tensors(fp8_folder, **{WEIGHT: torch.ones(32, 48)})
    with pytest.raises(ModelError, match=r"down_proj.weight has scales .*stored as F32"):
        load_tiny(fp8_folder)


def test_files_that_hold_fp8_and_a_config_that_does_not_say_so(fp8_folder: Path) -> None:
    edit_config(fp8_folder, quantization_config=None)
    with pytest.raises((ModelError, MissingHeadError), match=r"F8_E4M3|quantised"):
        load_tiny(fp8_folder)
    with pytest.raises(ModelError, match="F8_E4M3 with scales and a quantization_config"):
        load_tiny(fp8_folder, with_head=False)


def test_a_head_of_integers_in_an_fp8_checkpoint(fp8_folder: Path) -> None:
    name = "model.mtp_layers.0.mlp.up_proj.weight"
    weight = load_file(fp8_folder / "model.safetensors")[name]
    edit_tensors(fp8_folder, **{name: weight.view(torch.int8)})
    with pytest.raises(MissingHeadError, match=r"stored as I8 .*mtp_layers.0.mlp.up_proj"):
        load_tiny(fp8_folder)


def inputs(**changes: Any) -> dict[str, Any]:
    """A compressed-tensors declaration by channels, with other activations."""
    stated = compressed("channel")
    group = stated["config_groups"]["group_0"]
    own = group["input_activations"] | changes if changes else None
    return stated | {"config_groups": {"group_0": group | {"input_activations": own}}}


@pytest.mark.parametrize(
    ("stated", "declared"),
    [
        (FINE_GRAINED | {"activation_scheme": "static"}, "static"),
        (inputs(dynamic=False), "static"),
        (inputs(), "no"),
        (inputs(strategy="tensor"), r"other dynamic \(tensor\)"),
        (inputs(num_bits=4), r"other dynamic \(token\)"),
    ],
)
def test_activations_that_w8a8_does_not_quantise_as_declared(
    tmp_path: Path, stated: dict[str, Any], declared: str
) -> None:
    """Weights alone are run as ever."""
    is_fine = stated["quant_method"] == "fp8"
    how = {} if is_fine else {"quantise": by_channels, "scale_name": "_scale"}
    folder, _ = make_fp8_checkpoint(tmp_path, "mimo", MIMO, config=stated, **how)
    message = f"--quant w8a8: .* declares {declared} activation quantisation.*--quant w8a16"
    with pytest.raises(UnsupportedModelError, match=message):
        load_tiny(folder, quant=QuantMode.W8A8)
    assert load_tiny(folder).quant == "w8a16"


@pytest.mark.parametrize("mode", [QuantMode.W8A8, QuantMode.W8A16])
def test_a_mode_of_weights_that_are_plain(tmp_path: Path, mode: QuantMode) -> None:
    _, plain = make_fp8_checkpoint(tmp_path, "mimo", MIMO)
    with pytest.raises(BadInputError, match=f"^--quant {mode}: plain has no FP8 weights. Drop"):
        load_tiny(plain, quant=mode)


def test_experts_of_another_kind_are_refused_in_w8a8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = make_fp8_checkpoint(tmp_path, "qwen3_moe", DEEPSEEK)
    monkeypatch.setattr(loader, "is_plain_mixture", lambda experts: False)
    with pytest.raises(UnsupportedModelError, match="--quant w8a8: the experts of Qwen3Moe"):
        load_tiny(folder, quant=QuantMode.W8A8)


def test_peers_have_no_mode() -> None:
    with pytest.raises(BadInputError, match="--quant w8a8: peers"):
        PeersRequest(ModelRequest(quant=QuantMode.W8A8), CaptureRequest(spec_tokens=(3,)))
