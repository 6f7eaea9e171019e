"""GGUF targets: dequantised weights, the file's own tokenizer, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from cgbench.errors import ModelError
from cgbench.models.loader import load_model
from cgbench.models.loading_plan import Loading, plan_loading
from tests.support.tiny import SHAPE, load_tiny, make_checkpoint

gguf = pytest.importorskip("gguf")

# llama.cpp's names of the tensors of a Llama layer.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two halves of each rotary pair side by side."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def write_gguf(
    model: LlamaForCausalLM, file: Path, more: Mapping[str, np.ndarray] | None = None
) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    digits = [str(n) for n in range(10)]
    writer.add_token_list([*digits, "12", "<|im_end|>", *(chr(97 + n) for n in range(26)), "ab"])
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(11)
    writer.add_eos_token_id(11)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
    for layer in range(SHAPE["num_hidden_layers"]):
        for theirs, short in NAMES.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if short in heads:
                weight = permuted(weight, heads[short])
            writer.add_tensor(f"blk.{layer}.{short}.weight", weight)
    for name, tensor in (more or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(LlamaForCausalLM.from_pretrained(checkpoint), folder / "tiny.gguf")
    return folder


def request(ref: Path, head: Path | None = None) -> Loading:
    head_ref = None if head is None else str(head)
    return Loading(str(ref), head_ref, head is not None, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("of_folder", [True, False])
def test_weights_are_the_checkpoints(checkpoint: Path, folder: Path, of_folder: bool) -> None:
    """From the folder, from the file; with a head that is in a folder of its own."""
    ref = folder if of_folder else folder / "tiny.gguf"
    loaded = load_model(request(ref, head=checkpoint))
    expected = load_tiny(checkpoint)
    assert loaded.head is not None and expected.head is not None
    for ours, theirs in (
        (loaded.target.model, expected.target.model),
        (loaded.head, expected.head),
    ):
        state = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_the_tokenizer_gets_back_its_end_token_and_its_digits(folder: Path) -> None:
    tokenizer = load_model(request(folder)).tokenizer
    assert tokenizer is not None
    assert tokenizer.eos_token_id == 11
    assert tokenizer("12a")["input_ids"][-3:] == [1, 2, 12]


def test_a_gguf_file_has_no_head(folder: Path) -> None:
    where = (torch.device("cpu"), torch.float32)
    with pytest.raises(ModelError, match=r"the GGUF file holds no MTP head. Give --head"):
        plan_loading(Loading(str(folder), None, True, *where))


def test_a_head_in_a_gguf_file_is_named_and_refused(checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp keeps it as a block past the last, with ``nextn`` in its tensors' names."""
    size = SHAPE["hidden_size"]
    head = {
        "blk.2.nextn.enorm.weight": np.ones(size, np.float32),
        "blk.2.nextn.eh_proj.weight": np.ones((size, 2 * size), np.float32),
    }
    file = tmp_path / "mtp.gguf"
    write_gguf(LlamaForCausalLM.from_pretrained(checkpoint), file, more=head)
    where = (torch.device("cpu"), torch.float32)
    said = r"MTP head \(blk\.2\.nextn\.eh_proj\.weight, \.\.\.\) is not read from GGUF"
    with pytest.raises(ModelError, match=said):
        plan_loading(Loading(str(file), None, True, *where))


def test_several_files_are_not_guessed_between(folder: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes((folder / "tiny.gguf").read_bytes())
    with pytest.raises(ModelError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        plan_loading(request(tmp_path))


def test_missing_packages_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgbench.models.gguf.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"needs gguf and accelerate: pip install 'cgbench\[gguf"):
        plan_loading(request(folder))
