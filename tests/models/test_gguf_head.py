"""MTP heads of GGUF files: Qwen3.5's, as llama.cpp writes them, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.errors import ModelError
from cgbench.models.checkpoint import read_config
from cgbench.models.heads.families import QWEN
from cgbench.models.inspection import inspect_model
from cgbench.models.loader import LoadedModel
from cgbench.models.loading_plan import Loading, plan_loading
from tests.support import tiny
from tests.support.qwen_gguf import ROPE, Store, in_q8_0, plain, write_qwen_gguf
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

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers.integrations.gguf")

MAX_NEW_TOKENS = 16
ROOM = 24 + MAX_NEW_TOKENS + 2 * 5


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    shape = {"rope_parameters": ROPE, "rms_norm_eps": 1e-6}
    return make_checkpoint(folder, "qwen3_5_text", family=QWEN, seed=3, **shape)


def written(checkpoint: Path, folder: Path, store: Store = plain) -> Path:
    file = folder / "tiny.gguf"
    write_qwen_gguf(checkpoint, file, read_config(str(checkpoint)), store)
    return file


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(checkpoint, tmp_path_factory.mktemp("gguf"))


def difference(one: LoadedModel, other: LoadedModel) -> float:
    """The largest of a number in target and head. Norms went through float32's w + 1 - 1."""
    assert one.head is not None and other.head is not None
    pairs = ((one.target.model, other.target.model), (one.head, other.head))
    largest = 0.0
    for ours, theirs in pairs:
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        for name, tensor in ours.state_dict().items():
            largest = max(largest, float((tensor - state[name]).abs().max()))
    return largest


def test_the_head_is_the_checkpoints(checkpoint: Path, file: Path) -> None:
    """From the file and from its folder, and with the drafts that the checkpoint's makes."""
    expected = load_tiny(checkpoint)
    for ref in (file, file.parent):
        model = load_tiny(ref)
        assert model.head_label == "qwen" and difference(model, expected) < 2e-7
    prompts = random_prompts(5)
    drafts = []
    for each in (model, expected):
        spec = make_speculator(each, max_batch_size=5, room=ROOM)
        state = make_state(spec, 5, 5)
        prefilled = prefill(spec, prompts, max_num_tokens=64)
        begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
        iteration(spec, state.full)
        drafts.append(state.full.drafts.tolist())
    assert drafts[0] == drafts[1]


def test_tokens_are_plain_greedys(checkpoint: Path, file: Path) -> None:
    prompts = random_prompts(5)
    expected = greedy_reference(reference_model(checkpoint), prompts, MAX_NEW_TOKENS)
    spec = make_speculator(load_tiny(file), max_batch_size=5, room=ROOM)
    for k in (1, 3, 5):
        for batch in (prompts, prompts[2:3]):
            runner = EagerRunner(spec, make_state(spec, k, 5))
            got = decode_prompts(spec, runner, batch, MAX_NEW_TOKENS, max_num_tokens=64)
            assert got.token_ids == [expected[prompts.index(each)] for each in batch]


def test_blocks_of_8_bit_numbers_are_dequantised(checkpoint: Path, tmp_path: Path) -> None:
    head = load_tiny(written(checkpoint, tmp_path, in_q8_0)).head
    assert head is not None
    stored = load_file(checkpoint / "model.safetensors")
    kind = gguf.GGMLQuantizationType.Q8_0
    for ours, theirs in (("proj", "fc"), ("block.self_attn.k_proj", "layers.0.self_attn.k_proj")):
        whole = stored[f"mtp.{theirs}.weight"]
        blocks = gguf.quants.quantize(whole.numpy(), kind)
        expected = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
        assert torch.equal(head.get_parameter(f"{ours}.weight"), expected)
        assert not torch.equal(whole, expected)


def test_experts_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "qwen3_5_moe_text"
    config = tiny._config(kind, **(tiny._NO_RECURRENCE | tiny._SHARED_EXPERT))
    monkeypatch.setitem(tiny.MORE_CONFIGS, kind, config)
    folder = make_checkpoint(tmp_path / "hf", kind, family=QWEN, rope_parameters=ROPE)
    model = load_tiny(written(folder, tmp_path))
    assert difference(model, load_tiny(folder)) < 2e-7
    assert model.head is not None and any("experts" in name for name in model.head.state_dict())


def test_inspect_shows_where_the_head_is(file: Path) -> None:
    where = (torch.device("cpu"), torch.float32)
    found = inspect_model(Loading(str(file), None, True, *where))
    assert found.is_usable and found.head is not None
    assert (found.head.family, found.head.num_tensors) == ("qwen", 15)
    shapes = {tensor.name: tensor.shape for tensor in found.head_tensors}
    assert shapes["mtp.fc.weight"] == (32, 64)
    assert {tensor.file for tensor in found.head_tensors} == {"tiny.gguf"}


def test_what_the_block_lacks_is_named(checkpoint: Path, tmp_path: Path) -> None:
    def store(writer: object, name: str, values: object) -> None:
        if name != "blk.2.attn_k.weight":
            plain(writer, name, values)  # type: ignore[arg-type]

    where = (torch.device("cpu"), torch.float32)
    file = written(checkpoint, tmp_path, store)
    with pytest.raises(ModelError, match=r"the MTP head lacks mtp\.layers\.0\.self_attn\.k_proj"):
        plan_loading(Loading(str(file), None, True, *where))


def test_several_modules_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    def store(writer: object, name: str, values: object) -> None:
        plain(writer, name, values)  # type: ignore[arg-type]
        if ".nextn." in name:
            plain(writer, name.replace("blk.2", "blk.3"), values)  # type: ignore[arg-type]

    where = (torch.device("cpu"), torch.float32)
    file = written(checkpoint, tmp_path, store)
    said = r"its MTP head of several modules \(blk\.2\.nextn\.eh_proj\.weight, \.\.\.\) is not read"
    with pytest.raises(ModelError, match=said):
        plan_loading(Loading(str(file), None, True, *where))
