"""Reading checkpoints: MiMo's layout, shards through the index file, and damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from cgbench.errors import MissingHeadError, ModelError
from cgbench.models.checkpoint import INDEX_FILE, config_from_dict, read_config, tensor_files
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading
from tests.support.tiny import edit_config, load_tiny, make_checkpoint

HEAD = "model.mtp_layers.0."
HEAD_FILE = "mtp.safetensors"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("single") / "tiny", "mimo")


@pytest.fixture(scope="module")
def shards(single: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights in several files, the head in one of its own, as GLM-4.6 keeps it."""
    folder = tmp_path_factory.mktemp("shards") / "tiny"
    tensors = load_file(single / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(single, config=read_config(str(single)))
    model.save_pretrained(folder, max_shard_size="20KB")
    edit_config(folder, model_type="mimo")
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"] |= dict.fromkeys(head, HEAD_FILE)
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards, to be damaged."""
    return Path(shutil.copytree(shards, tmp_path / "damaged"))


def digest(folder: Path) -> str:
    model = load_tiny(folder)
    return fingerprint(model.target, model.head)


def load_with_head(folder: Path, head: Path) -> None:
    load_model(Loading(str(folder), str(head), True, torch.device("cpu"), torch.float32))


def assert_named(error: pytest.ExceptionInfo[ModelError], *words: str) -> None:
    message = str(error.value)
    assert "\n" not in message and [word for word in words if word not in message] == []


PUBLIC_MIMO_CONFIG = {
    "architectures": ["MiMoForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig"},
    "attention_bias": True,
    "head_dim": 8,
    "hidden_act": "silu",
    "model_type": "mimo",
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 640000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
}
"""What the public ``config.json`` holds beside sizes."""


def test_mimo_is_read_as_the_qwen2_it_is(single: Path, tmp_path: Path) -> None:
    sizes = json.loads((single / "config.json").read_text())
    sizes = {name: sizes[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC_MIMO_CONFIG | sizes))
    config = read_config(str(tmp_path))
    assert type(config) is Qwen2Config
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert config.rms_norm_eps == 1e-5 and not config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 640000
    assert config.layer_types == ["full_attention"] * 2


def test_mimo_gives_the_model_that_qwen2_gives(single: Path, tmp_path: Path) -> None:
    assert digest(make_checkpoint(tmp_path, "qwen2")) == digest(single)


def test_shards_give_the_same_model_as_one_file(single: Path, shards: Path) -> None:
    assert len(set(tensor_files(str(shards)).values())) > 3
    assert digest(shards) == digest(single)


def test_tensors_are_found_through_the_index(single: Path, shards: Path) -> None:
    files = tensor_files(str(shards))
    assert set(files) == set(tensor_files(str(single)))
    assert {files[name].name for name in files if name.startswith(HEAD)} == {HEAD_FILE}


@pytest.mark.parametrize("which", ["target", "head"])
def test_a_shard_that_is_not_there_is_named(damaged: Path, which: str) -> None:
    file = HEAD_FILE
    if which == "target":
        file = tensor_files(str(damaged))["lm_head.weight"].name
    (damaged / file).unlink()
    with pytest.raises(ModelError) as error:
        load_tiny(damaged)
    assert_named(error, str(damaged), file)


def test_a_shard_of_the_head_alone_that_is_not_there_is_named(single: Path, damaged: Path) -> None:
    (damaged / HEAD_FILE).unlink()
    with pytest.raises(ModelError) as error:
        load_with_head(single, damaged)
    assert_named(error, str(damaged), INDEX_FILE, HEAD_FILE)


def test_a_declared_head_without_tensors_is_missing(single: Path, damaged: Path) -> None:
    """Re-quantised checkpoints do this: the config says one MTP layer, no tensor is there."""
    edit_config(damaged, num_nextn_predict_layers=1)
    take_head_from_index(damaged)
    (damaged / HEAD_FILE).unlink()
    with pytest.raises(MissingHeadError) as error:
        load_tiny(damaged)
    assert_named(error, str(damaged), f"{HEAD}input_proj.weight", "--head")


def take_head_from_index(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"] = {n: f for n, f in index["weight_map"].items() if "mtp" not in n}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_a_head_beside_the_index_is_found(single: Path, damaged: Path) -> None:
    """Heads that were exported anew lie there."""
    take_head_from_index(damaged)
    assert digest(damaged) == digest(single)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty])
def test_damaged_weights_are_named(
    single: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(single, tmp_path / "cut"))
    damage(folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_tiny(folder)
    assert_named(error, str(folder))


@pytest.mark.parametrize("damage", [cut, empty])
def test_a_damaged_head_in_one_file_is_named(
    single: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(single, tmp_path / "cut"))
    damage(folder / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_with_head(single, folder)
    assert_named(error, str(folder / "model.safetensors"))


def test_a_damaged_head_in_a_shard_is_named(single: Path, damaged: Path) -> None:
    cut(damaged / HEAD_FILE)
    with pytest.raises(ModelError) as error:
        load_with_head(single, damaged)
    assert_named(error, str(damaged / HEAD_FILE))


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_index_is_named(single: Path, damaged: Path, content: str) -> None:
    (damaged / INDEX_FILE).write_text(content)
    with pytest.raises(ModelError) as error:
        load_with_head(single, damaged)
    assert_named(error, str(damaged), INDEX_FILE)


def test_a_folder_with_no_tensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        tensor_files(str(tmp_path))
    assert_named(error, str(tmp_path), "model.safetensors", INDEX_FILE)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"model_type": "nothing-known"}', "nothing-known"),
        ('{"hidden_size": 1}', "model_type"),
        ("{", ""),
    ],
    ids=["unknown model_type", "no model_type", "not JSON"],
)
def test_a_config_of_no_known_type_is_named(tmp_path: Path, content: str, word: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as error:
        read_config(str(tmp_path))
    assert_named(error, f"MODEL {tmp_path}/config.json", word)


def test_a_window_that_is_stated_as_earlier_tokens_holds_the_querys_own_too() -> None:
    """transformers reads the name from 5.20 on."""
    config = config_from_dict({"model_type": "mimo_v2_flash", "sliding_window_size": 8})
    assert config.sliding_window == 9
