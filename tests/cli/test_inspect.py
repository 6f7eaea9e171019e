"""``cgbench inspect``: what it tells of a checkpoint, and that no weight is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MiniMaxConfig

from cgbench.models import loader
from cgbench.models.heads.families import DEEPSEEK, EXAONE, QWEN, STEP, HeadFamily
from cgbench.models.heads.head import HeadForm
from tests.support.command import cgbench
from tests.support.tiny import MORE_CONFIGS, SHAPE, edit_config, make_checkpoint


@pytest.fixture(autouse=True)
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("inspect must not load weights")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(loader, "load_model", refuse)


def test_facts_of_a_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "glm4_moe", family=DEEPSEEK)
    done = cgbench("inspect", folder, "--json", "--dtype", "bfloat16", "--device", "cpu")
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["class"] == "Glm4MoeForCausalLM"
    assert facts["experts"] and not facts["tied_embeddings"]
    assert (facts["num_experts"], facts["experts_per_token"]) == (8, 2)
    assert facts["num_layers"] == 2 and facts["vocab_size"] == 64
    head = facts["head"]
    assert (head["family"], head["modules"], head["chain"]) == ("deepseek", 1, "post")
    # Keys and values of 2 kv heads of size 16, two layers and the head's, two bytes each.
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 3 * 2
    names = {tensor["name"]: tensor for tensor in facts["head_tensors"]}
    assert names["model.layers.2.eh_proj.weight"]["shape"] == [32, 64]
    assert names["model.layers.2.mlp.experts.7.up_proj.weight"]["dtype"] == "F32"
    # What is stored in float32 is twice what bfloat16 would load, but for what stays in float32.
    stored = sum(facts["checkpoint"]["files"].values())
    kept = sum(part["num_bytes"] for part in facts["precision"] if part["dtype"] == "float32")
    assert kept > 0 and stored + kept == 2 * (facts["weight_bytes"] + head["weight_bytes"])


def test_modules_that_draft_are_told_with_what_feeds_them(tmp_path: Path) -> None:
    form = HeadForm(own_output=True)
    made = {"family": STEP, "form": form, "num_modules": 3}
    folder = make_checkpoint(tmp_path / "tiny", "step3p7", **made)
    lines = cgbench("inspect", folder, "--device", "cpu").stdout.splitlines()
    assert "modules       3, one a draft step, each fed the chain of the module before" in lines
    of_modules = [line for line in lines if line.startswith("output matrix")]
    assert [line.partition(".lm_head")[0][-1] for line in of_modules] == ["2", "3", "4"]
    fewer = cgbench("inspect", folder, "--device", "cpu", "--mtp-modules", "1", "--json")
    head = json.loads(fewer.stdout)["head"]
    assert (head["label"], head["modules"]) == ("step (module 1 of 3)", 1)
    assert (head["modules_stored"], head["feed"]) == (3, "chain")
    words = cgbench("inspect", folder, "--device", "cpu", "--mtp-modules", "1").stdout
    assert "modules       1 of 3, run again for every draft step\n" in words
    other = ("--mtp-modules", "2", "--head-feed", "target")
    words = cgbench("inspect", folder, "--device", "cpu", *other).stdout
    assert "modules       2 of 3, one a draft step, each fed the target's hidden state\n" in words
    wrong = cgbench("inspect", folder, "--device", "cpu", "--mtp-modules", "4")
    assert wrong.code == 2 and "--mtp-modules 4: the head has 3 modules" in wrong.stderr


def test_a_preset_has_no_files(tmp_path: Path) -> None:
    where = ("--dtype", "bfloat16", "--device", "cpu")
    done = cgbench("inspect", "preset:deepseek-v3-6l", "--tensors", *where)
    assert done.code == 0
    assert "256 experts of which a token takes 8" in done.stdout
    assert done.stdout.endswith("no tensor of a head is stored\n")
    assert "random weights" in done.stdout
    facts = json.loads(cgbench("inspect", "preset:deepseek-v3-6l", "--json", *where).stdout)
    # 38,125,674,240 values, and of three layers the routers' corrections in float32 at the least.
    kept = sum(
        part["num_bytes"]
        for part in facts["precision"]
        if part["dtype"] == "float32" and not part["part"].startswith("head")
    )
    assert kept >= 3 * 256 * 4
    assert f"{2 * 38_125_674_240 + kept // 2:,} bytes" in done.stdout
    # Of 7 layers with the head's: 512 values and 64 rotary ones, two bytes each.
    words = "8,064 bytes a token, head included, in bfloat16: latents of 576 values a layer"
    assert words in done.stdout


def test_a_hybrid_tells_the_bytes_of_its_state(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3_5_moe", family=QWEN)
    where = ("--device", "cpu", "--dtype", "bfloat16")
    facts = json.loads(cgbench("inspect", folder, "--json", *where).stdout)
    # The full-attention layer and the head's: keys and values of 2 heads of size 16, two bytes.
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    channels = 2 * 2 * 8 + 4 * 12
    # Three layers: a float32 matrix for each of 4 heads, and the 3 tokens that a kernel of 4 sees.
    assert facts["state_bytes_per_request"] == 3 * (4 * 8 * 12 * 4 + 3 * channels * 2)
    assert facts["state_bytes_per_verified_row"] == 3 * (4 * (8 + 12 + 1) * 4 + channels * 2)
    done = cgbench("inspect", folder, *where)
    assert done.code == 0 and "can be captured" in done.stdout
    state = f"{facts['state_bytes_per_request']:,} bytes"
    assert state in done.stdout and "a request of any length" in done.stdout


def test_ranks_are_told_what_each_would_hold(tmp_path: Path) -> None:
    """Two KV heads, two key heads of the delta nets and four of their value heads."""
    folder = make_checkpoint(tmp_path, "qwen3_next-hybrid", family=QWEN)
    where = ("--device", "cpu", "--dtype", "bfloat16")
    alone = json.loads(cgbench("inspect", folder, "--json", *where).stdout)
    assert alone["ranks"] is None
    two = json.loads(cgbench("inspect", folder, "--json", *where, "--tp", 2).stdout)["ranks"]
    both = alone["weight_bytes"] + alone["head"]["weight_bytes"]
    assert (two["num_ranks"], two["kv_copies"], two["problem"]) == (2, 1, None)
    assert 2 * two["weight_bytes"] == both
    for name in ("kv_bytes_per_token", "state_bytes_per_request", "state_bytes_per_verified_row"):
        assert 2 * two[name] == alone[name]
    four = cgbench("inspect", folder, *where, "--tp", 4)
    assert four.code == 1
    words = "on 4 ranks    --tp 4: does not divide the 2 key heads of the linear-attention layers"
    assert words in four.stdout
    cgbench("inspect", folder, "--tp", 0).refused(2, "--tp 0")


def test_kv_heads_fewer_than_ranks_are_told(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3", num_key_value_heads=1)
    done = cgbench("inspect", folder, "--device", "cpu", "--tp", 4)
    assert done.code == 0
    per_token = 2 * 16 * 3 * 4
    assert f"KV {per_token} bytes a token, each KV head on 4 ranks\n" in done.stdout
    assert f"KV            {per_token} bytes a token" in done.stdout


def test_a_checkpoint_without_head_is_a_finding(tmp_path: Path) -> None:
    config = MORE_CONFIGS["gemma3_text"]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    done = cgbench("inspect", tmp_path, "--device", "cpu")
    assert done.code == 1
    assert "no MTP head tensors" in done.stdout and "head included" not in done.stdout
    assert "can be captured" in done.stdout


def test_missing_weights_are_a_finding_in_the_words_of_run(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "mimo")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = cgbench("inspect", folder, "--device", "cpu")
    assert done.code == 1
    assert "head included" in done.stdout and "can be captured" not in done.stdout
    problem = f"MODEL {folder}: 1 tensors are missing, {name} among them"
    assert problem in done.stdout
    facts = json.loads(cgbench("inspect", folder, "--device", "cpu", "--json").stdout)
    assert facts["weights_problem"] == problem and facts["head_problem"] is None


def test_a_head_that_would_not_load_is_a_finding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.experts.3.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    done = cgbench("inspect", folder, "--device", "cpu")
    assert done.code == 1
    assert "lacks model.layers.2.mlp.experts.3.up_proj.weight" in done.stdout


def test_a_forward_that_cannot_be_captured_is_a_finding(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    edit_config(folder, rope_parameters=dynamic)
    done = cgbench("inspect", folder, "--device", "cpu", "--json")
    assert done.code == 1
    facts = json.loads(done.stdout)
    assert "'dynamic', which cannot be captured" in facts["capture_problem"]
    assert facts["head_problem"] is None


def test_another_hybrid_is_refused_by_name(tmp_path: Path) -> None:
    hybrid = MiniMaxConfig(**SHAPE, layer_types=["linear_attention", "full_attention"])
    (tmp_path / "config.json").write_text(json.dumps(hybrid.to_dict()))
    cgbench("inspect", tmp_path, "--device", "cpu").refused(
        3, "MiniMaxForCausalLM", "linear_attention"
    )


def test_overrides_are_shown(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    done = cgbench("inspect", folder, "--chain-norm", "post", "--device", "cpu", "--tensors")
    assert done.code == 0
    assert "mimo[chain=post]" in done.stdout
    assert "model.mtp_layers.0.input_proj.weight" in done.stdout
    assert str(SHAPE["hidden_size"]) in done.stdout


def test_each_stored_matrix_is_said_to_be_the_heads_own_or_a_copy(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "glm4_moe", family=DEEPSEEK)
    tensors = load_file(folder / "model.safetensors")
    own = {
        "model.layers.2.embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.2.shared_head.head.weight": torch.ones(64, 32),
    }
    save_file(tensors | own, folder / "model.safetensors", metadata={"format": "pt"})
    done = cgbench("inspect", folder, "--device", "cpu")
    assert done.code == 0
    embedding, output = (line for line in done.stdout.splitlines() if "model.layers.2." in line)
    assert embedding.startswith("embedding") and "an equal copy of the target's" in embedding
    assert output.startswith("output matrix") and "the head's own: differs" in output
    facts = json.loads(cgbench("inspect", folder, "--device", "cpu", "--json").stdout)
    assert [copy["use"] for copy in facts["head"]["copies"]] == ["equal copy", "own"]
    names = [tensor["name"] for tensor in facts["head_tensors"]]
    assert [name for name in names if name in own] == ["model.layers.2.shared_head.head.weight"]


@pytest.mark.parametrize(
    ("kind", "family", "words"),
    [
        ("exaone4_5", EXAONE, "scale by w (the target's scale by w)"),
        ("qwen3_5_text", QWEN, "scale by 1 + w (the target's scale by 1 + w)"),
        ("glm4_moe", DEEPSEEK, "scale by w, as the target's"),
    ],
)
def test_the_form_of_norms_is_shown(
    kind: str, family: HeadFamily, words: str, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path, kind, family=family)
    assert words in cgbench("inspect", folder, "--device", "cpu").stdout


def test_a_type_that_no_family_knows_is_a_finding(tmp_path: Path) -> None:
    """And any checkpoint runs with the family and the wiring that the flags state."""
    folder = make_checkpoint(tmp_path, "llama", family=QWEN)
    edit_config(folder, cgbench_head={})
    done = cgbench("inspect", folder, "--device", "cpu")
    assert done.code == 1 and "known for model type llama. State one with" in done.stdout
    flags = ("--head-family", "exaone", "--head-norm-form", "one_plus", "--head-out-norm", "target")
    facts = json.loads(cgbench("inspect", folder, *flags, "--device", "cpu", "--json").stdout)
    assert facts["head"]["family"] == "exaone[out_norm=target,norm_form=one_plus]"
    assert facts["head_problem"] is None
