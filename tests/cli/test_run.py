"""``cgbench run`` on a tiny checkpoint: what it writes, what it prints, and where."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from cgbench.engine.runner import EagerRunner
from cgbench.measure import group
from cgbench.models import presets
from cgbench.models.heads.head import HeadForm
from cgbench.models.presets import Preset
from cgbench.rundir.store import RunDirectory
from cgbench.workload.load import sha256_of
from tests.support.command import FAST, Done, cgbench
from tests.support.fixtures import FEW_BLOCKS
from tests.support.tiny import (
    SHAPE,
    add_tokenizer,
    greedy_reference,
    make_checkpoint,
    reference_model,
)

MAX_NEW_TOKENS = 8
ONE_SIZE = ("--batch-sizes", "1")
NO_GRAPHS = "no graphs here: CUDA graphs need a CUDA device, so only scope eager is measured"


@dataclass(frozen=True)
class Finished:
    done: Done
    path: Path
    directory: RunDirectory

    @property
    def latency(self) -> pd.DataFrame:
        return self.directory.latency()


def run(path: Path, model: object, *args: object) -> Finished:
    done = cgbench("run", model, *FAST, *args, "--output", path)
    assert done.code == 0, done.stderr
    return Finished(done, path, RunDirectory.open(path))


@pytest.fixture(scope="module")
def finished(tiny: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("runs") / "run"
    return run(path, tiny, "--prompts", prompts, "--save-tokens", "--spec-tokens", "3")


def test_every_cell_is_measured_and_k_0_with_them(finished: Finished) -> None:
    frame = finished.latency
    assert finished.directory.record.complete
    assert list(zip(frame["batch_size"], frame["spec_tokens"], strict=True)) == [
        (1, 0),
        (1, 3),
        (2, 0),
        (2, 3),
    ]
    assert set(frame["status"]) == {"ok"} and set(frame["scope"]) == {"eager"}
    assert set(frame["blocks"]) == {FEW_BLOCKS} and set(frame["discarded_blocks"]) == {0}
    assert (frame["iterations"] % FEW_BLOCKS == 0).all() and set(frame["context_len"]) == {12}
    assert set(frame["l2"]) == {"warm"} and (frame["half_width_frac"] > 0).all()
    assert ((frame["mean_context_len"] - 13.5).abs() <= 2).all()
    assert (frame["iteration_p50_ms"] > 0).all()
    assert frame["head"].tolist() == ["none", "mimo"] * 2


def test_the_table_and_nothing_else_goes_to_stdout(finished: Finished) -> None:
    lines = [line.split() for line in finished.done.stdout.splitlines()]
    assert "iteration p50 [ms]" in finished.done.stdout
    rows = [words[:3] for words in lines if words[:1] == ["eager"]]
    assert rows == [["eager", k, size] for size in "12" for k in "03"]
    assert NO_GRAPHS not in finished.done.stdout


def test_stderr_says_that_there_are_no_graphs_and_where_the_run_is(finished: Finished) -> None:
    lines = finished.done.stderr.splitlines()
    assert lines[0] == NO_GRAPHS
    assert lines[-1] == f"written to {finished.path}"


def test_tokens_are_plain_greedy_decodings(finished: Finished, tiny: Path) -> None:
    rows = finished.directory.tokens()
    assert len(rows) == 2 * 2 * 3  # k, batch sizes, prompts
    plain = greedy_reference(
        reference_model(tiny), [row["prompt_ids"] for row in rows], MAX_NEW_TOKENS
    )
    assert [row["token_ids"] for row in rows] == plain
    assert len({token for tokens in plain for token in tokens}) > 8


def test_token_hashes_are_of_the_saved_tokens_and_agree(finished: Finished) -> None:
    rows = finished.directory.tokens()
    first = [row["token_ids"] for row in rows if (row["spec_tokens"], row["batch_size"]) == (3, 2)]
    assert finished.latency["tokens_sha256"].tolist() == [sha256_of(first)] * 4


def test_the_record_says_what_was_asked_and_what_was_measured(
    finished: Finished, tiny: Path, prompts: Path
) -> None:
    record = finished.directory.record
    assert record.arguments["model"] == str(tiny)
    assert record.arguments["spec_tokens"] == [3]
    assert record.workload["source"] == str(prompts) and record.workload["num_prompts"] == 3
    assert not record.model["random_weights"]
    assert record.warnings[0] == NO_GRAPHS
    assert all("--precision" in line for line in record.warnings[1:])
    assert record.workload["mean_context_len"] == 13.5
    assert record.telemetry == {"blocks": 4 * FEW_BLOCKS, "discarded": {}}
    assert [plan["spec_tokens"] for plan in record.plans] == [0, 3]


def test_sampled_text_is_the_seeds_and_the_record_spells_the_rule_one_way(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    arguments = ("--prompts", prompts, "--spec-tokens", "1", "--batch-sizes", "2", "--acceptance")
    typed = ("sampled:top-p=0.950,temperature=1", "sampled:top-p=.95", "sampled:top-p=0.95")
    frames = [
        run(tmp_path / str(i), tiny, *arguments, text, "--seed", i // 2).latency
        for i, text in enumerate(typed)
    ]
    assert {rule for frame in frames for rule in frame["acceptance"]} == {"sampled:top-p=0.95"}
    first, again, other = (frame["tokens_sha256"].tolist() for frame in frames)
    assert first == again and not set(first) & set(other)


def test_json_is_one_object_and_all_of_stdout(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """And no tokens are written, because nobody asked for them."""
    path = tmp_path / "run"
    got = run(path, tiny, "--prompts", prompts, "--spec-tokens", "1,3", *ONE_SIZE, "--json")
    assert (path / "latency.md").is_file() and not (path / "tokens.jsonl").exists()
    answer = json.loads(got.done.stdout)
    assert answer["path"] == str(path) and answer["complete"] is True
    assert [row["spec_tokens"] for row in answer["latency"]] == [0, 1, 3]
    assert answer["latency"][0]["bucket"] is None  # an empty cell, and valid JSON
    assert NO_GRAPHS in got.done.stderr


@pytest.fixture(scope="module")
def of_three(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Finished]:
    """Runs of a checkpoint with three modules: of the first alone, and of all, both explained."""
    root = tmp_path_factory.mktemp("modules")
    form = HeadForm(own_output=True)
    folder = make_checkpoint(root / "three", "mimo", vocab_size=256, form=form)
    add_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    first = {name: tensor for name, tensor in tensors.items() if "mtp_layers.0" in name}
    for number in ("1", "2"):
        more = {name.replace("layers.0", f"layers.{number}"): t for name, t in first.items()}
        tensors |= {name: tensor.clone() for name, tensor in more.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    flags = ("--prompts", prompts, "--spec-tokens", "3", "--explain", *ONE_SIZE)
    one = run(root / "one", folder, *flags, "--mtp-modules", "1")
    return one, run(root / "run", folder, *flags)


def test_every_row_has_a_floor_and_explain_prints_what_it_is_made_of(
    of_three: tuple[Finished, Finished],
) -> None:
    for got in of_three:
        frame, record = got.latency, got.directory.record
        assert (frame["floor_ms"] > 0).all()
        share = frame["floor_ms"] / frame["iteration_p50_ms"]
        assert frame["floor_frac"].tolist() == pytest.approx(share.tolist(), rel=1e-4)
        rates = {"read_bytes_per_s", "flops_per_s"}
        assert set(record.floor["limits"]) == rates | {"read_spread_frac", "cache_bytes"}
        floors = [
            sum(line["seconds"] for line in account["lines"]) * 1e3
            for account in record.floor["accounts"]
        ]
        assert frame["floor_ms"].tolist() == pytest.approx(floors, rel=1e-4)
        assert got.done.stdout.count("floor: k ") == 2 and "mlp.down_proj" in got.done.stdout


def test_a_head_of_another_checkpoint_is_used_and_changes_no_token(
    finished: Finished, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    other = make_checkpoint(tmp_path / "other", "mimo", vocab_size=256, seed=7)
    (other / "config.json").unlink()  # a folder of tensors is enough
    args = ("--prompts", prompts, "--save-tokens", "--batch-sizes", "2", "--head", other)
    got = run(tmp_path / "run", tiny, *args)
    of_two = [row for row in finished.directory.tokens() if row["batch_size"] == 2]
    assert got.directory.tokens() == of_two
    assert set(got.latency["head"]) == {"none", "mimo:other"}
    fingerprints = {f.directory.record.model["fingerprint"] for f in (got, finished)}
    assert len(fingerprints) == 2


def test_which_of_several_modules_draft_is_said_wherever_results_are_shown(
    of_three: tuple[Finished, Finished],
) -> None:
    """And that a head's own output matrix is in the floor's account."""
    one, got = of_three
    assert set(one.latency["head"]) == {"none", "mimo (module 1 of 3)"}
    assert set(one.latency["mtp_modules"]) == {1}
    label = "mimo (3 modules)"
    assert set(got.latency["head"]) == {"none", label}
    assert f"head {label}, device cpu" in " ".join(got.done.stdout.split())
    assert f"- head {label}, device cpu" in (got.path / "latency.md").read_text()
    record = got.directory.record
    words = [each.directory.record.model["mtp_modules"] for each in (one, got)]
    assert words == [
        "module 1 of 3, reused for every draft step",
        "3 modules, one a draft step, the last reused for the steps past it",
    ]
    assert set(got.latency[["spec_tokens", "mtp_modules"]].itertuples(index=False, name=None)) == {
        (0, 1),
        (3, 3),
    }
    assert record.model["head_wiring"]["chain"] == "post"
    lines = {(line["stage"], line["what"]) for a in record.floor["accounts"] for line in a["lines"]}
    assert {("verify", "lm_head"), ("draft_1", "output")} <= lines
    assert ("draft_1", "lm_head") not in lines


def test_eos_ends_requests_unless_it_is_ignored(
    finished: Finished, tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    plain = [row["token_ids"] for row in finished.directory.tokens()[:3]]
    eos = plain[0][3]
    folder = make_checkpoint(tmp_path / "eos", "mimo", vocab_size=256, eos=eos)
    add_tokenizer(folder)
    args = (folder, "--prompts", prompts, "--save-tokens", "--batch-sizes", "2")
    ended = run(tmp_path / "ended", *args).directory.tokens()
    ignored = run(tmp_path / "ignored", *args, "--ignore-eos").directory.tokens()
    cut = [tokens[: tokens.index(eos) + 1] if eos in tokens else tokens for tokens in plain]
    assert cut != plain
    assert [row["token_ids"] for row in ended] == cut * 2
    assert [row["token_ids"] for row in ignored] == plain * 2


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    config = {**SHAPE, "model_type": "mimo"}
    monkeypatch.setitem(presets.PRESETS, "small", Preset("small", "a test", config))
    return "preset:small"


def test_random_weights_are_labelled_wherever_results_are_shown(
    tiny_preset: str, tmp_path: Path
) -> None:
    got = run(tmp_path / "run", tiny_preset, "--batch-sizes", "1")
    label = "preset:small (random weights)"
    assert label in got.done.stdout and label in (got.path / "latency.md").read_text()
    assert set(got.latency["model"]) == {label}
    assert set(got.latency["head"]) == {"none", "mimo (random weights)"}
    record = got.directory.record
    assert record.model["random_weights"] and record.workload["source"] == "random tokens, seed 0"


@pytest.mark.parametrize("flag", ["--prompts", "--head"])
def test_a_preset_takes_neither_prompts_nor_a_head(
    tiny_preset: str, tiny: Path, prompts: Path, tmp_path: Path, flag: str
) -> None:
    value = prompts if flag == "--prompts" else tiny
    done = cgbench("run", tiny_preset, *FAST, flag, value, "--output", tmp_path / "run")
    done.refused(2, flag, tiny_preset)
    assert not (tmp_path / "run").exists()


def corrupt(monkeypatch: pytest.MonkeyPatch, k: int, batch_size: int) -> None:
    """Row 0 emits another token at k drafts and ``batch_size`` requests."""
    real = EagerRunner.step

    def step(self: EagerRunner, rows: int) -> None:
        real(self, rows)
        if (self.state.spec_tokens, rows) == (k, batch_size):
            self.state.full.out[0, 0] = (self.state.full.out[0, 0] + 1) % 256

    monkeypatch.setattr(EagerRunner, "step", step)


def test_a_cell_that_answers_wrongly_has_no_latency_and_fails_the_run(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the cell and what differed on stderr, and every other cell as ever."""
    corrupt(monkeypatch, 3, 2)
    args = ("--prompts", prompts, "--output", tmp_path / "run", "--save-tokens")
    done = cgbench("run", tiny, *FAST, *args)
    assert done.code == 1 and "error" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("audit failed: ")]
    assert "eager k=3, batch size 2: tokens differ from eager k=0's: request 0, token 1:" in line
    assert "cgbench audit" in line
    (row,) = [line for line in done.stdout.splitlines() if "audit_failed" in line]
    assert row.split() == ["eager", "3", "2", "audit_failed"]
    directory = RunDirectory.open(tmp_path / "run")
    assert directory.record.complete and line in directory.record.warnings
    frame = directory.latency().set_index(["batch_size", "spec_tokens"])
    wrong = frame.index == (2, 3)
    assert frame.loc[wrong, "status"].tolist() == ["audit_failed"]
    assert set(frame.loc[~wrong, "status"]) == {"ok"}
    values = ["iteration_p50_ms", "tpot_ms", "speedup_vs_no_spec", "mean_acceptance_length"]
    assert frame.loc[wrong, values].isna().all(axis=None)
    assert frame.loc[~wrong, values].notna().all(axis=None)
    saved = {(row["batch_size"], row["spec_tokens"]) for row in directory.tokens()}
    assert saved == {(1, 0), (1, 3), (2, 0)}


def test_a_cell_out_of_memory_is_marked_and_the_others_stay(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3, with the table printed and the run directory complete."""
    real = group.generate

    def generate(runner: object, first_tokens: list[int]) -> object:
        if (runner.state.spec_tokens, len(first_tokens)) == (3, 2):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(runner, first_tokens)

    monkeypatch.setattr(group, "generate", generate)
    args = ("--prompts", prompts, "--output", tmp_path / "run", "--save-tokens")
    done = cgbench("run", tiny, *FAST, *args)
    assert done.code == 3 and "oom" in done.stdout and "error" not in done.stderr
    directory = RunDirectory.open(tmp_path / "run")
    frame = directory.latency().set_index(["batch_size", "spec_tokens"])
    assert directory.record.complete
    assert frame["status"].to_dict() == {(1, 0): "ok", (1, 3): "ok", (2, 0): "ok", (2, 3): "oom"}
    lost = frame.loc[(2, 3), ["iteration_p50_ms", "tokens_sha256", "mean_acceptance_length"]]
    assert lost.isna().all()
    assert frame.drop((2, 3))["iteration_p50_ms"].notna().all()
    saved = {(row["batch_size"], row["spec_tokens"]) for row in directory.tokens()}
    assert saved == {(1, 0), (1, 3), (2, 0)}
