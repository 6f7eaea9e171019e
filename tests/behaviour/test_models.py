"""Model references and checkpoints that cannot be used: one line that says which and why."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig

from cgbench.engine import deployment
from cgbench.measure import setup
from cgbench.models import checkpoint
from cgbench.models.presets import PRESETS, Preset
from cgbench.rundir.store import RunDirectory
from tests.support.command import FAST, Done, cgbench
from tests.support.tiny import SHAPE, edit_config

HEAD = "model.mtp_layers.0."

Run = Callable[..., Done]


@pytest.fixture
def run(prompts: Path, tmp_path: Path) -> Run:
    """A run that is refused before its folder is made."""

    def refused_run(model: object, *args: object) -> Done:
        out = tmp_path / "run"
        done = cgbench("run", model, *FAST, "--prompts", prompts, "--output", out, *args)
        assert not out.exists()
        return done

    return refused_run


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "damaged"))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(*parts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }


@pytest.mark.parametrize("ref", ["nobody/nothing", "nothing", "/nowhere/at-all"])
def test_an_unknown_model_is_named(run: Run, ref: str) -> None:
    run(ref).refused(2, f"MODEL {ref}")


@pytest.mark.parametrize("ref", ["nobody/nothing", "/nowhere/at-all"])
def test_an_unknown_head_is_named(run: Run, tiny: Path, ref: str) -> None:
    run(tiny, "--head", ref).refused(2, ref)


def test_an_unknown_head_is_named_with_its_flag(run: Run, tiny: Path) -> None:
    run(tiny, "--head", "/nowhere/at-all").refused(2, "--head /nowhere/at-all")
    run(tiny, "--head", "").refused(2, "--head : no such folder")


def test_a_folder_that_is_not_there_is_not_mistaken_for_a_hub_id(run: Run) -> None:
    done = run("/nowhere/at-all")
    done.refused(2, "MODEL /nowhere/at-all")
    assert "Repo id" not in done.error


@pytest.mark.parametrize("ref", ["bogus", "a" * 300, f"{'a' * 97}/b", "a/b/c", "\u00e9/b"])
def test_what_no_hub_could_hold_is_not_looked_up(
    run: Run, tiny: Path, ref: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network that takes half a minute."""

    def look_up(*_: object, **__: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(checkpoint, "cached_file", look_up)
    run(ref).refused(2, f"MODEL {ref[:60]}", "owner/name")
    run(tiny, "--head", ref).refused(2, f"--head {ref[:60]}", "owner/name")


def test_a_folder_without_config_is_named(run: Run, tmp_path: Path) -> None:
    run(tmp_path).refused(2, f"MODEL {tmp_path}", "config.json")


def test_an_unknown_preset_is_named_with_the_known_ones(run: Run) -> None:
    run("preset:nothing").refused(2, "MODEL preset:nothing", "mimo-7b")


def test_a_broken_config_is_named(run: Run, folder: Path) -> None:
    (folder / "config.json").write_text("{")
    run(folder).refused(2, f"{folder}/config.json")


def test_an_unknown_model_type_is_named(run: Run, folder: Path) -> None:
    edit_config(folder, model_type="nothing-known")
    run(folder).refused(2, f"MODEL {folder}", "nothing-known")


def test_a_folder_without_weights_is_named(run: Run, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    run(folder).refused(2, f"{folder}: neither model.safetensors")


def test_a_folder_without_a_tokenizer_is_named(run: Run, folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    run(folder).refused(2, f"MODEL {folder}", "tokenizer")


def test_a_missing_target_tensor_is_named(run: Run, folder: Path) -> None:
    edit_tensors(folder, without("model.layers.0.mlp.up_proj"))
    run(folder).refused(2, f"MODEL {folder}", "model.layers.0.mlp.up_proj.weight")


def test_a_target_tensor_of_the_wrong_shape_is_named(run: Run, folder: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: torch.zeros(3, 3)})
    run(folder).refused(2, f"MODEL {folder}", name)


def test_a_missing_head_says_what_was_looked_for_and_what_to_give(run: Run, folder: Path) -> None:
    edit_tensors(folder, without("mtp"))
    run(folder).refused(2, str(folder), f"{HEAD}input_proj.weight", "--head", "--spec-tokens 0")


def test_no_head_is_needed_for_k_0_alone(folder: Path, prompts: Path, tmp_path: Path) -> None:
    edit_tensors(folder, without("mtp"))
    args = ("--prompts", prompts, "--spec-tokens", "0", "--output", tmp_path / "run")
    assert cgbench("run", folder, *FAST, *args).code == 0


def test_missing_head_tensors_are_named_one_by_one(run: Run, folder: Path) -> None:
    names = (f"{HEAD}input_proj.weight", f"{HEAD}mlp.up_proj.weight")
    edit_tensors(folder, without(*names))
    run(folder).refused(2, str(folder), *names)


def test_a_head_of_the_wrong_shape_is_named(run: Run, folder: Path) -> None:
    name = f"{HEAD}input_proj.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: torch.zeros(32, 32)})
    run(folder).refused(2, str(folder), name, "(32, 32), not (32, 64)")


def test_a_head_made_for_another_target_is_refused(run: Run, folder: Path) -> None:
    """Its biases would be dropped, and lossless decoding would hide that."""
    name = f"{HEAD}self_attn.q_norm.weight"
    edit_tensors(folder, lambda tensors: tensors | {name: torch.ones(8)})
    run(folder).refused(2, str(folder), name, "another target")


def test_a_cut_head_file_is_named(run: Run, folder: Path, tiny: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    run(tiny, "--head", folder).refused(2, str(file))


def test_an_unsupported_model_is_named_by_its_class(run: Run, folder: Path) -> None:
    config = BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    run(folder).refused(3, "BloomForCausalLM", "'layers'")


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nSecond line.")


def test_weights_that_do_not_fit_say_what_to_lower(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "load_model", out_of_memory)
    run(tiny).refused(3, f"out of memory loading {tiny}", "--dtype")


def test_a_cache_that_does_not_fit_says_what_to_lower(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batch sizes up to 2: two slots and the scratch one, of 14 + 32 + 6 tokens."""
    monkeypatch.setattr(deployment, "KvCache", out_of_memory)
    run(tiny).refused(3, "3 slots of 52 tokens", "--max-num-seqs", "--context-len")


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    config = {**SHAPE, "model_type": "mimo", "vocab_size": 256}
    monkeypatch.setitem(PRESETS, "small", Preset("small", "a test", config))
    return "preset:small"


QUICK = (*("--max-time", 0, "--iterations", 4, "--context-len", 8, "--max-new-tokens", 4),)


def test_every_k_of_a_preset_is_measured_at_its_own_golden_length(
    small_preset: str, tmp_path: Path
) -> None:
    flags = ("--batch-sizes", 2, *QUICK)
    out = tmp_path / "run"
    done = cgbench("run", small_preset, "--spec-tokens", "1,3,5", *flags, "--output", out)
    assert done.code == 0, done.stderr
    row = "golden:glm-5.2-on (borrowed)"
    assert f"{row}, the mean acceptance length of GLM-5.2, thinking on" in done.stderr
    assert "(1.84 at k = 1, 2.99 at k = 3, 3.61 at k = 5)" in done.stderr
    latency = RunDirectory.open(out).latency().set_index("spec_tokens")
    assert latency["acceptance"].unique().tolist() == [row]
    lengths = latency["mean_acceptance_length"].to_dict()
    assert lengths == {0: 1.0, 1: 1.84, 3: 2.99, 5: 3.61}
    rate = latency["output_tok_per_s"] * latency["tpot_ms"]
    assert rate.tolist() == pytest.approx([2e3] * 4, rel=1e-4)
    for text in (done.stdout, (out / "latency.md").read_text()):
        assert row in text and "tok/s" in text
    # The terminal shows it with --wide.
    assert "TPOT [ms]" in (out / "latency.md").read_text()


def test_a_length_that_one_k_cannot_reach_is_refused_by_that_k(
    small_preset: str, tmp_path: Path
) -> None:
    words = ("--spec-tokens", "1,3", "--acceptance", "length:2.5", "--output", tmp_path / "run")
    done = cgbench("run", small_preset, *words)
    done.refused(2, "--acceptance length:2.5", "--spec-tokens 1 reaches lengths of 1 to 2")


def test_a_preset_keeps_drafts_at_a_golden_length_unless_told(
    small_preset: str, tmp_path: Path
) -> None:
    """Random weights would accept none; the rule is in the table, and a line says so. A golden
    length that is asked for is as borrowed as the default's."""
    default = "golden:glm-5.2-on (borrowed)"
    for number, (args, rule) in enumerate(
        (
            ((), default),
            (("--acceptance", "golden:glm-5.2-on"), default),
            (("--acceptance", "greedy"), "greedy"),
        )
    ):
        out = tmp_path / str(number)
        flags = ("--spec-tokens", 2, "--batch-sizes", 1, *QUICK)
        done = cgbench("run", small_preset, *flags, "--output", out, *args)
        assert done.code == 0, done.stderr
        assert RunDirectory.open(out).latency()["acceptance"].unique().tolist() == [rule]
        assert ("random weights accept no draft" in done.stderr) == (not args)
