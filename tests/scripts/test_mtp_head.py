"""Training an MTP head: its prompts, its text, its loss, and the folder that comes out."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

import train_mtp_head
from cgbench.engine.acceptance import Greedy, Sampled
from cgbench.errors import BadInputError
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from mtp_head.dataset import Dataset, make_dataset
from mtp_head.decoding import Decoder
from mtp_head.functions import function_heads
from mtp_head.generated import (
    GenerationSettings,
    Sample,
    generate_samples,
    read_samples,
    write_samples,
)
from mtp_head.initial import new_model
from mtp_head.instructions import instructions
from mtp_head.prompts import Prompt, held_out_groups, make_prompts
from mtp_head.puzzles import puzzles
from mtp_training import losses
from mtp_training.drafts import drafts_of_rows, walk
from mtp_training.model import TRAINED, Model
from mtp_training.optimise import Budget, cosine, linear
from tests.support.tiny import (
    add_tokenizer,
    greedy_reference,
    load_tiny,
    make_checkpoint,
    random_prompts,
    reference_model,
)

K = 3
ROOM = 128
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
SOURCE = '''
def area(width: int, height=1) -> int:
    """The area of a rectangle, in square metres."""
    return width * height

class Shape:
    def scale(self, factor):
        """Make it larger.

        By that factor.
        """

    def __init__(self):
        """Documented, but no function to ask for."""

def undocumented(): ...
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("target"), "llama", vocab_size=256)
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def target(folder: Path) -> LoadedModel:
    return load_tiny(folder)


@pytest.fixture
def tokenizer(target: LoadedModel) -> PreTrainedTokenizerBase:
    assert target.tokenizer is not None
    return target.tokenizer


@pytest.fixture
def model(target: LoadedModel) -> Model:
    """The target with the random head beside it in the checkpoint."""
    assert target.head is not None
    return Model(target.target, target.head, target.target.device)


def test_a_function_is_shown_up_to_its_body() -> None:
    assert [code for _, _, code in function_heads(SOURCE)] == [
        "def area(width: int, height=1) -> int:\n"
        '    """The area of a rectangle, in square metres."""\n',
        'def scale(factor):\n    """Make it larger.\n\n    By that factor.\n    """\n',
    ]


def test_what_is_not_python_gives_no_functions() -> None:
    assert list(function_heads("def f(:")) == []


def test_puzzles_are_python() -> None:
    made = list(puzzles(random.Random(0)))
    assert len({code for _, _, code in made}) == len(made) > 500
    for name, doc, code in made:
        assert list(function_heads(code)) == [(name, doc, code)]


def test_instructions_are_distinct_and_complete() -> None:
    made = instructions(2000, random.Random(0))
    assert len(set(made)) == len(made) == 2000
    assert made == instructions(2000, random.Random(0)) != instructions(2000, random.Random(1))
    assert not any("{" in text or "}" in text for text in made)


def test_prompts_are_chat_too_where_there_is_a_template(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes.py").write_text(SOURCE)
    (tmp_path / "asked.jsonl").write_text('{"prompt": "As it is."}\n')
    paragraph = "Paragraphs " + "of some length " * 9
    (tmp_path / "prose.txt").write_text(f"Title\n\n{paragraph}\n\n- a list\n")
    plain = make_prompts([tmp_path], tokenizer, 50, seed=0)
    assert {prompt.kind for prompt in plain} == {"code", "file", "text"}
    assert {"As it is.", paragraph.rstrip()} <= {prompt.text for prompt in plain}
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    chat = make_prompts([tmp_path], tokenizer, 50, seed=0)
    assert chat == make_prompts([tmp_path], tokenizer, 50, seed=0)
    assert sum(prompt.kind == "chat" for prompt in chat) == 50
    asked = [p for p in chat if p.kind == "chat-code" and p.group == "area"]
    assert asked and asked[0].text.startswith("<user>") and "square metres" in asked[0].text


def test_data_that_is_not_there_is_named(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(BadInputError, match=r"--data .*nothing\.py"):
        make_prompts([tmp_path / "nothing.py"], tokenizer, 0, seed=0)


def test_one_group_in_twenty_is_held_out() -> None:
    prompts = [Prompt(f"{kind} {i}", kind, str(i)) for i in range(200) for kind in ("a", "b")]
    held_out = held_out_groups(prompts, seed=0)
    assert len(held_out) == 10 and held_out < {prompt.group for prompt in prompts}
    assert held_out == held_out_groups(prompts[::-1], seed=0) != held_out_groups(prompts, seed=1)


def test_the_target_writes_the_text(folder: Path, target: LoadedModel, tmp_path: Path) -> None:
    """Plain greedy decoding's tokens, up to the first 8-gram that comes a second time."""
    prompts = [Prompt(f"text {i}", "text", str(i)) for i in range(6)]
    settings = GenerationSettings(4, 64, 48, sampled_share=0.0, seconds=60, seed=0)
    samples = generate_samples(target, prompts, settings)
    whole = greedy_reference(reference_model(folder), [s.prompt_ids for s in samples], 48)
    assert {s.kind for s in samples} == {"text"} and sum(s.held_out for s in samples) == 1
    for sample, tokens in zip(samples, whole, strict=True):
        kept = sample.token_ids
        assert kept == tokens[: len(kept)]
        eights = [tuple(tokens[i : i + 8]) for i in range(len(tokens) - 7)]
        assert len(set(eights[: len(kept)])) == len(eights[: len(kept)])
        assert len(kept) == len(tokens) or eights[len(kept)] in eights[: len(kept)]
    write_samples(tmp_path / "kept.jsonl", samples)
    assert read_samples(tmp_path / "kept.jsonl") == samples


def test_a_share_of_it_is_sampled(target: LoadedModel) -> None:
    prompts = [Prompt(f"text {i}", "text", str(i)) for i in range(8)]
    settings = GenerationSettings(8, 64, 16, sampled_share=0.5, seconds=60, seed=0)
    greedy = generate_samples(target, prompts, replace(settings, sampled_share=0.0))
    mixed = generate_samples(target, prompts, settings)
    assert mixed == generate_samples(target, prompts, settings)
    assert sum(sample in greedy for sample in mixed) == 4


def test_at_no_temperature_sampling_is_greedy(target: LoadedModel) -> None:
    prompts = random_prompts(4)
    decoders = [
        Decoder(target, spec_tokens=0, batch_size=4, room=ROOM, accept=accept)
        for accept in (Greedy(), Sampled(1e-4))
    ]
    greedy, sampled = (decoder.decode(prompts, 24) for decoder in decoders)
    assert greedy.token_ids == sampled.token_ids


def test_the_chain_of_whole_sequences_is_the_engines(target: LoadedModel, model: Model) -> None:
    prompts = random_prompts(6)
    decoder = Decoder(target, spec_tokens=K, batch_size=6, room=ROOM, accept=Greedy())
    out = decoder.decode(prompts, 40)
    for prompt, tokens, accepted in zip(prompts, out.token_ids, out.accepted, strict=True):
        full = torch.tensor([prompt + tokens])
        again = walk(full[0], len(prompt), drafts_of_rows(model, full, K)[0])
        assert again == accepted[: len(again)] and len(again) >= len(accepted) - K


def test_the_loss_and_its_gradient_are_cross_entropys(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked through two sequences at a time, against torch's own on all logits at once."""
    monkeypatch.setattr(losses, "MAX_LOGITS", 2 * 12 * 256)
    torch.manual_seed(0)
    outputs = torch.randn(2, 5, 9, 32, requires_grad=True)
    goal = torch.randn(5, 12, 32)
    weights = losses.row_weights(torch.rand(5, 12) > 0.3, (1.0, 0.5), 9)
    loss = losses._SoftLabelLoss.apply(outputs, goal, weights, model.target)
    (gradient,) = torch.autograd.grad(loss, outputs)

    labels = losses.soften(model.target.logits(goal)).detach()
    plain = [
        F.cross_entropy(
            model.target.logits(outputs[step]).movedim(-1, 1),
            labels[:, step + 1 : step + 10].movedim(-1, 1),
            reduction="none",
        )
        for step in range(2)
    ]
    expected = (torch.stack(plain) * weights).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, outputs)[0])


def test_a_head_begins_as_the_targets_last_layer(target: LoadedModel) -> None:
    ids = torch.tensor(random_prompts(1))
    model = new_model(target.target, TRAINED, ids)
    last = target.target.model.base_model.layers[-1].state_dict()
    assert all(torch.equal(tensor, last[n]) for n, tensor in model.head.block.state_dict().items())
    hidden = torch.randn(1, 4, 32)
    passed = model.head.proj(torch.cat([hidden, torch.zeros(1, 4, 32)], dim=-1))
    torch.testing.assert_close(passed, hidden)
    assert {p.requires_grad for p in model.head.parameters()} == {True}
    assert {p.requires_grad for p in target.target.model.parameters()} == {False}


def make_samples(count: int) -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample("text", False, [1] * draw.randint(1, 40), [2] * draw.randint(2, 90))
        for _ in range(count)
    ]


def test_batches_hold_every_row_once() -> None:
    samples = make_samples(50)
    data: Dataset = make_dataset(samples, K, torch.device("cpu"))
    batches = data.batches(512, K)
    assert sorted(int(i) for index, _ in batches for i in index) == list(range(50))
    for index, length in batches:
        ids, counted = data.rows(index, length)
        assert ids.numel() <= 512 and (length - K - 1) % 32 == 0
        assert torch.equal(counted, ids == 2)
        assert counted.sum() == sum(len(samples[i].token_ids) for i in index)


@pytest.mark.parametrize("schedule", [linear, cosine])
def test_a_schedule_ends_where_the_budget_does(schedule: object) -> None:
    assert callable(schedule)
    budget = Budget(steps=200)
    shares = [schedule(budget.progress(step)) for step in range(201)]
    assert shares[0] == 0 and max(shares) > 0.95 and abs(shares[-1]) < 1e-9
    assert shares.index(max(shares)) < 10 and shares[10:] == sorted(shares[10:], reverse=True)


def test_from_a_target_to_a_head_that_loads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes.py").write_text(SOURCE)
    out, asked = tmp_path / "head", tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "Words to go on from."}\n')
    flags = (
        f"--model {folder} --data {tmp_path / 'shapes.py'} --out {out} --evaluate {asked} "
        "--max-prompts 48 --max-new-tokens 32 --batch-size 16 --steps 24 --tokens-per-batch 1024 "
        "--eval-prompts 2 --lr 0.01"
    )
    monkeypatch.setattr("sys.argv", ["train_mtp_head.py", *flags.split()])
    train_mtp_head.main()

    head = load_model(Loading(str(folder), str(out), True, torch.device("cpu"), torch.float32)).head
    assert head is not None
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {head.tensor_name(name) for name in head.state_dict()}
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}
    reports = json.loads((out / "history.json").read_text())["reports"]
    assert reports[-1]["validation_loss"] < reports[0]["validation_loss"]
    card = (out / "README.md").read_text()
    assert "1 asked | before repeat" in card and str(tmp_path) not in card
