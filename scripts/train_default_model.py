"""Train the default model: a small causal LM of Python text with an MTP draft head.

The model exists so that `cgbench run default` decodes real text with real acceptance anywhere,
without a model hub. It is a Qwen2 in MiMo-7B's checkpoint layout, trained in a few minutes on one
GPU from text that anyone can get: the standard library of the Python that runs this script, and
the sources of Python's documentation (Debian's package python3.11-doc, folder `_sources`).

    python scripts/train_default_model.py prepare --docs _sources --data DATA
    python scripts/train_default_model.py train --data DATA --output MODEL
    python scripts/train_default_model.py evaluate --data DATA --model MODEL

The regime that shapes it: 5 M parameters see eleven million tokens many times over, so the target
memorises; weight decay and taking the checkpoint of least validation loss hold it back. The head
is trained in three stages, each nearer to what it meets in decoding: beside the target on its
next-next-token loss (as DeepSeek-V3 does), then on its own recurrent chain against the frozen
target's predictions, then the same on text that the target generated.

Everything is in one file, over the house's length, so that the provenance of the weights can be
read from top to bottom.
"""

import argparse
import copy
import json
import math
import platform
import random
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.checkpoint import config_from_dict
from cgbench.models.families import MIMO
from cgbench.models.head import DraftHead
from cgbench.models.loading import ModelRequest, load_model, randomise
from cgbench.models.target import Target

EOS = "<|endoftext|>"
EOS_ID = 0

CONFIG: dict[str, Any] = {
    "architectures": ["MiMoForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 768,
    "max_position_embeddings": 2048,
    "model_type": "mimo",
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 4096,
}

# ---------------------------------------------------------------- the text

# Never trained on, nor is any file of the same name elsewhere, its test or its documentation.
HELD_OUT_MODULES = (
    "calendar.py",
    "cmd.py",
    "csv.py",
    "difflib.py",
    "fileinput.py",
    "fractions.py",
    "getopt.py",
    "graphlib.py",
    "heapq.py",
    "netrc.py",
    "pprint.py",
    "reprlib.py",
    "sched.py",
    "shelve.py",
    "shlex.py",
    "statistics.py",
    "textwrap.py",
    "wave.py",
    "zipapp.py",
)
HELD_OUT_PAGES = (
    "faq/design.rst.txt",
    "howto/sockets.rst.txt",
    "howto/sorting.rst.txt",
    "tutorial/datastructures.rst.txt",
    "tutorial/inputoutput.rst.txt",
)
# Tables rather than code; pages that the documentation holds again; files a build writes.
SKIPPED = ("encodings/", "pydoc_data/", "site-packages/", "test/cjkencodings/", "_sysconfigdata")

LONG_LINE_CHARS = 40
NEAR_COPY_FRAC = 0.1
VALIDATION_EVERY = 50

NUM_EVAL_PROMPTS = 96
NUM_SHIPPED_PROMPTS = 16
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 60, 240


def prepare(args: argparse.Namespace) -> None:
    """Text to token files: `train`, `validation` and `held_out`, and prompts cut from held-out."""
    files = read_sources(args.docs)
    held_out = {name: files[name] for name in held_out_names()}
    training = training_files(files, held_out)
    args.data.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(list(training.values()))
    save_tokenizer(tokenizer, args.data)

    names = sorted(training)
    validation = names[::VALIDATION_EVERY]
    splits = {
        "train": [training[name] for name in names if name not in set(validation)],
        "validation": [training[name] for name in validation],
        "held_out": list(held_out.values()),
    }
    tokens = {
        name: write_tokens(tokenizer, docs, args.data / name) for name, docs in splits.items()
    }
    write_prompts(tokenizer, held_out, args.data)
    facts = {
        "python": platform.python_version(),
        "files": {name: len(docs) for name, docs in splits.items()},
        "tokens": tokens,
        "dropped_near_copies": sorted(set(files) - set(training) - set(held_out)),
    }
    (args.data / "corpus.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: facts[key] for key in ("python", "files", "tokens")}))


def read_sources(docs: Path) -> dict[str, str]:
    """Every source text, keyed `Lib/...` or `Doc/...`."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    found = {f"Lib/{p.relative_to(stdlib).as_posix()}": p for p in stdlib.rglob("*.py")}
    found |= {f"Doc/{p.relative_to(docs).as_posix()}": p for p in docs.rglob("*.txt")}
    kept = {n: p for n, p in found.items() if not n.removeprefix("Lib/").startswith(SKIPPED)}
    texts = {name: read_utf8(path) for name, path in sorted(kept.items())}
    return {name: text for name, text in texts.items() if text.strip()}


def read_utf8(path: Path) -> str:
    """The text, or nothing: a few test files are in other encodings on purpose."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return ""


def held_out_names() -> list[str]:
    modules = [f"Lib/{name}" for name in HELD_OUT_MODULES]
    return modules + [f"Doc/{name}" for name in HELD_OUT_PAGES]


def training_files(files: dict[str, str], held_out: dict[str, str]) -> dict[str, str]:
    """All files that neither share a held-out file's name nor repeat its lines."""
    stems = {bare_name(name) for name in held_out}
    held_lines = {line for text in held_out.values() for line in long_lines(text)}
    return {
        name: text
        for name, text in files.items()
        if bare_name(name) not in stems and overlap(text, held_lines) < NEAR_COPY_FRAC
    }


def bare_name(name: str) -> str:
    """`heapq` for Lib/heapq.py, Lib/test/test_heapq.py and Doc/library/heapq.rst.txt alike."""
    return Path(name).name.split(".")[0].removeprefix("test_")


def long_lines(text: str) -> list[str]:
    """The lines long enough that two files share them only by copying."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if len(line) >= LONG_LINE_CHARS]


def overlap(text: str, held_lines: set[str]) -> float:
    lines = long_lines(text)
    return sum(line in held_lines for line in lines) / max(1, len(lines))


# ---------------------------------------------------------------- tokens and prompts

# Qwen2's pre-tokenizer, digits one by one: a newline stays apart from the indentation after it.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with no normaliser: every text comes back byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(EOS) == EOS_ID
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def write_tokens(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """All texts as one uint16 file, an end-of-text after each; returns the number of tokens."""
    encoded = tokenizer.encode_batch_fast(texts)
    flat = [token for doc in encoded for token in (*doc.ids, EOS_ID)]
    np.array(flat, dtype=np.uint16).tofile(path.with_suffix(".bin"))
    return len(flat)


def write_prompts(tokenizer: Tokenizer, held_out: dict[str, str], folder: Path) -> None:
    """`eval_prompts.jsonl`, and every sixth of them as the `prompts.jsonl` that ships."""
    prompts = cut_prompts(tokenizer, held_out)
    step = len(prompts) // NUM_SHIPPED_PROMPTS
    shipped = [{"prompt": entry["prompt"]} for entry in prompts[::step][:NUM_SHIPPED_PROMPTS]]
    write_jsonl(folder / "eval_prompts.jsonl", prompts)
    write_jsonl(folder / "prompts.jsonl", shipped)


def cut_prompts(tokenizer: Tokenizer, held_out: dict[str, str]) -> list[dict[str, Any]]:
    """Passages that begin where a reader would, a fair share from each file, none overlapping."""
    rng = random.Random(0)
    per_file = {name: passages(tokenizer, text, rng) for name, text in held_out.items()}
    for found in per_file.values():
        rng.shuffle(found)
    taken: list[dict[str, Any]] = []
    while len(taken) < NUM_EVAL_PROMPTS:
        for name, found in per_file.items():
            if found:
                taken.append({"prompt": found.pop(), "source": name})
    taken = taken[:NUM_EVAL_PROMPTS]
    rng.shuffle(taken)
    return taken


def passages(tokenizer: Tokenizer, text: str, rng: random.Random) -> list[str]:
    """Runs of whole lines from natural starts, each of a length drawn from the allowed range."""
    lines = text.splitlines()
    found, free_from = [], 0
    for start in natural_starts(lines):
        if start < free_from:
            continue
        wanted = rng.randint(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS)
        end = start + 1
        while end < len(lines) and num_tokens(tokenizer, lines[start : end + 1]) <= wanted:
            end += 1
        passage = "\n".join(lines[start:end]).rstrip()
        if end < len(lines) and num_tokens(tokenizer, [passage]) >= MIN_PROMPT_TOKENS:
            found.append(passage)
            free_from = end
    return found


def natural_starts(lines: list[str]) -> Iterator[int]:
    """Top-level definitions and methods in code, section titles in reStructuredText."""
    for number, line in enumerate(lines[:-1]):
        underlined = len(line) > 3 and lines[number + 1].strip("=-*~") == ""
        is_title = underlined and len(lines[number + 1]) >= len(line) and line[0].isalnum()
        if line.lstrip().startswith(("def ", "class ", "async def ")) or is_title:
            yield number


def num_tokens(tokenizer: Tokenizer, lines: list[str]) -> int:
    return len(tokenizer.encode("\n".join(lines)).ids)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Corpus:
    """One token file on a device, read in random windows that ignore document borders."""

    def __init__(self, path: Path, device: torch.device) -> None:
        tokens = np.fromfile(path, dtype=np.uint16).astype(np.int32)
        self.tokens = torch.from_numpy(tokens).to(device)

    def windows(self, batch: int, length: int) -> Tensor:
        """``[batch, length]`` token ids from random places."""
        device = self.tokens.device
        starts = torch.randint(len(self.tokens) - length, (batch, 1), device=device)
        return self.tokens[starts + torch.arange(length, device=device)].long()

    def in_order(self, length: int) -> Tensor:
        """``[N, length]``: the whole file, without the tail that fills no window."""
        count = len(self.tokens) // length
        return self.tokens[: count * length].view(count, length).long()


# ---------------------------------------------------------------- attention without a cache


class CausalAttention:
    """The target's attention over whole sequences."""

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)


class ChainAttention:
    """The head's attention at draft steps 1, 2, .. of every row at once; one object a chain.

    In decoding, a draft step leaves its key beside those of step 1 for all earlier rows, and the
    next iteration overwrites it. So row i sees step 1's keys of rows 0..i, and of each later
    step, its own included, row i alone.
    """

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self,
        layer_idx: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        # Repeated here because masked fused kernels take no grouped heads.
        groups = query.shape[1] // key.shape[1]
        self.keys.append(key.repeat_interleave(groups, dim=1))
        self.values.append(value.repeat_interleave(groups, dim=1))
        mask = self._mask(query.shape[2], query.device)
        keys, values = torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        return out.transpose(1, 2)

    def _mask(self, rows: int, device: torch.device) -> Tensor:
        own = torch.eye(rows, dtype=torch.bool, device=device)
        causal = torch.ones_like(own).tril()
        return torch.cat([causal, *[own] * (len(self.keys) - 1)], dim=1)


def positions(like: Tensor, first: int = 0) -> Tensor:
    """``[B, S]`` consecutive positions for ``like [B, S, ...]``."""
    batch, length = like.shape[:2]
    return torch.arange(first, first + length, device=like.device).expand(batch, length)


def run_chain(
    target: Target,
    head: DraftHead,
    hidden: Tensor,
    tokens_of_step: Callable[[int, list[Tensor]], Tensor],
    num_steps: int,
) -> list[Tensor]:
    """Draft logits ``[B, S, vocab]`` of steps 1..num_steps, for all rows of ``hidden [B, S, H]``.

    ``hidden`` is the target's before its final norm; ``tokens_of_step(step, logits so far)`` gives
    the ``[B, S]`` tokens a step is fed. Step s of row i reads token i+s, stands at position
    i+s-1 and predicts token i+s+1.
    """
    attention = ChainAttention()
    all_logits: list[Tensor] = []
    for step in range(1, num_steps + 1):
        embeds = target.embed(tokens_of_step(step, all_logits))
        position_ids = positions(embeds, first=step - 1)
        rope = target.rope(embeds, position_ids)
        out = head(embeds, hidden, rope, position_ids, attention)
        normed = head.to_logits_input(out)
        all_logits.append(target.logits(normed))
        hidden = head.to_chain(out, normed)
    return all_logits


# ---------------------------------------------------------------- training

DRAFT_STEPS = 4
STEP_WEIGHTS = (1.0, 0.9, 0.8, 0.7)
# Half the target's distribution, half its first choice: greedy acceptance asks for the second,
# and the first says how near the other tokens were.
HARD_LABEL_SHARE = 0.5

WARM_UP_FRAC = 0.02
TARGET_PEAK_LR, HEAD_PEAK_LR = 3e-3, 2e-3
WEIGHT_DECAY = 0.1
MTP_LOSS_WEIGHT = 0.3
# The share of the head's time that goes to the corpus; the rest goes to generated text.
CORPUS_SHARE = 0.4
NUM_REPORTS = 12


@dataclass(frozen=True)
class Shapes:
    """Batch shapes; the defaults are the shipped model's, `--tiny` is for a trial on a CPU."""

    target_batch: int = 16
    target_length: int = 2048
    head_batch: int = 16
    # The rows left for the chain are then 1024 and 320, as fused attention likes them.
    head_length: int = 1024 + DRAFT_STEPS + 1
    generated_batch: int = 48
    generated_length: int = 320 + DRAFT_STEPS + 1
    prompts_per_length: int = 8192
    prompt_lengths: tuple[int, ...] = (64, 96, 128, 192)


TINY = Shapes(2, 128, 2, 64, 4, 64, 32, (16, 32))


@dataclass
class Model:
    """A target with its head, and the settings under which both are computed."""

    target: Target
    head: DraftHead
    device: torch.device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")


def train(args: argparse.Namespace) -> None:
    """Target with head, then the head alone; MODEL is written after each."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shapes = TINY if args.tiny else Shapes()
    model = new_model(device)
    corpus = Corpus(args.data / "train.bin", device)
    validation = Corpus(args.data / "validation.bin", device)
    history: dict[str, Any] = {"seed": args.seed, "shapes": asdict(shapes)}

    history["target"] = train_target(model, corpus, validation, shapes, args.target_seconds)
    round_to_bfloat16(model.target.model)
    save_model(model, args.data, args.output)
    generated = generate_text(model, corpus, shapes, shapes.prompts_per_length)
    unseen = generate_text(model, validation, shapes, shapes.prompts_per_length // 32)
    history["generated_tokens"] = int(generated.counted.sum())
    history["head"] = train_head(model, corpus, generated, unseen, shapes, args.head_seconds)
    save_model(model, args.data, args.output)
    (args.output / "history.json").write_text(json.dumps(history, indent=1) + "\n")


def new_model(device: torch.device) -> Model:
    with torch.device(device):
        backbone = AutoModelForCausalLM.from_config(
            config_from_dict(CONFIG), dtype=torch.float32, attn_implementation=ATTENTION_NAME
        )
        target = Target(backbone)
        head = DraftHead(MIMO, target.model)
    randomise(head)
    return Model(target, head, device)


def train_target(
    model: Model, corpus: Corpus, validation: Corpus, shapes: Shapes, seconds: float
) -> dict[str, Any]:
    """The target by its next-token loss, the head beside it; both are trained."""
    unseen = validation.in_order(shapes.head_length)

    def loss(_: float) -> Tensor:
        with model.autocast():
            return joint_loss(model, corpus.windows(shapes.target_batch, shapes.target_length))

    both = nn.ModuleList([model.target.model, model.head])
    return optimise(both, TARGET_PEAK_LR, seconds, loss, lambda: target_loss(model, unseen))


def joint_loss(model: Model, ids: Tensor) -> Tensor:
    """Next-token loss, and the head's first step on the token after next; ``ids [B, L]``."""
    hidden = model.target.forward(ids, positions(ids), CausalAttention())
    own = cross_entropy(model.target.logits(hidden.post_norm[:, :-1]), ids[:, 1:])
    (draft,) = run_chain(
        model.target, model.head, hidden.pre_norm[:, :-2], lambda *_: ids[:, 1:-1], 1
    )
    return own + MTP_LOSS_WEIGHT * cross_entropy(draft, ids[:, 2:])


def train_head(
    model: Model,
    corpus: Corpus,
    generated: "GeneratedText",
    unseen: "GeneratedText",
    shapes: Shapes,
    seconds: float,
) -> dict[str, Any]:
    """The head on its own chain, the target frozen: on the corpus, then on generated text."""
    model.target.model.requires_grad_(False)

    def loss(progress: float) -> Tensor:
        with model.autocast():
            if progress >= CORPUS_SHARE:
                return chain_loss(model, *generated.sample(shapes.generated_batch))
            ids = corpus.windows(shapes.head_batch, shapes.head_length)
            return chain_loss(model, ids, torch.ones_like(ids, dtype=torch.bool))

    return optimise(model.head, HEAD_PEAK_LR, seconds, loss, lambda: head_loss(model, unseen))


def chain_loss(model: Model, ids: Tensor, counted: Tensor) -> Tensor:
    """Each step against what the target itself predicts there; ``ids``, ``counted`` ``[B, L]``.

    A row counts at a step where the token it predicts does.
    """
    with torch.no_grad():
        hidden = model.target.forward(ids, positions(ids), CausalAttention())
        teacher = soften(model.target.logits(hidden.post_norm))
    rows = ids.shape[1] - DRAFT_STEPS - 1
    drafts = run_chain(
        model.target,
        model.head,
        hidden.pre_norm[:, :rows],
        lambda step, _: ids[:, step : step + rows],
        DRAFT_STEPS,
    )
    total = torch.zeros((), device=ids.device)
    for step, (logits, weight) in enumerate(zip(drafts, STEP_WEIGHTS, strict=True), start=1):
        goal = teacher[:, step : step + rows]
        mask = counted[:, step + 1 : step + 1 + rows]
        losses = F.cross_entropy(logits.flatten(0, 1), goal.flatten(0, 1), reduction="none")
        total = total + weight * (losses * mask.flatten()).sum() / mask.sum().clamp(min=1)
    return total / sum(STEP_WEIGHTS)


def soften(logits: Tensor) -> Tensor:
    """The distribution the head is to match, ``[B, L, vocab]``."""
    soft = (1 - HARD_LABEL_SHARE) * logits.float().softmax(-1)
    choice = logits.argmax(-1, keepdim=True)
    share = torch.full_like(choice, HARD_LABEL_SHARE, dtype=soft.dtype)
    return soft.scatter_add_(-1, choice, share)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def optimise(
    module: nn.Module,
    peak_lr: float,
    seconds: float,
    loss_of: Callable[[float], Tensor],
    validation_loss: Callable[[], float],
) -> dict[str, Any]:
    """AdamW until the time is up, and then the weights of least validation loss.

    ``loss_of`` and the learning rate follow progress, the fraction of ``seconds`` gone: a time
    budget holds on any machine, and the number of steps that fitted is returned.
    """
    optimizer = make_optimizer(module)
    reports: list[dict[str, float]] = []
    best = {"validation_loss": math.inf}
    best_state = module.state_dict()
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        set_learning_rate(optimizer, peak_lr, progress)
        loss = loss_of(progress)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        progress = (time.monotonic() - start) / seconds
        if progress * NUM_REPORTS >= len(reports) + 1:
            reports.append(
                {"step": step, "loss": loss.item(), "validation_loss": validation_loss()}
            )
            print(f"{progress:6.1%} {reports[-1]}", flush=True)
            if reports[-1]["validation_loss"] < best["validation_loss"]:
                best, best_state = reports[-1], copy.deepcopy(module.state_dict())
    module.load_state_dict(best_state)
    return {"steps": step, "best": best, "reports": reports}


def make_optimizer(module: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() == 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, peak: float, progress: float) -> None:
    """A short linear rise, then down to zero along a line."""
    rise = min(1.0, progress / WARM_UP_FRAC)
    for group in optimizer.param_groups:
        group["lr"] = peak * min(rise, 1.0 - progress) + 1e-8


@torch.no_grad()
def target_loss(model: Model, windows: Tensor) -> float:
    """The target's mean next-token loss in nats over ``[N, L]`` windows."""
    losses = []
    for ids in windows.split(8):
        with model.autocast():
            hidden = model.target.forward(ids, positions(ids), CausalAttention())
            logits = model.target.logits(hidden.post_norm[:, :-1])
        losses += [cross_entropy(logits, ids[:, 1:])] * len(ids)
    return torch.stack(losses).mean().item()


@torch.no_grad()
def head_loss(model: Model, text: "GeneratedText") -> float:
    """The head's training loss over all of ``text``."""
    losses = []
    for ids, counted in zip(text.ids.split(128), text.counted.split(128), strict=True):
        with model.autocast():
            losses.append(chain_loss(model, ids, counted))
    return torch.stack(losses).mean().item()


# ---------------------------------------------------------------- text the target generates

REPEAT_TOKENS = 8


@dataclass
class GeneratedText:
    """``ids [N, L]``: corpus prompts with the target's greedy continuation; ``counted [N, L]``
    is false from where a continuation ends or begins to go round in circles."""

    ids: Tensor
    counted: Tensor

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.ids), (batch,), device=self.ids.device)
        return self.ids[chosen], self.counted[chosen]


def generate_text(
    model: Model, corpus: Corpus, shapes: Shapes, prompts_per_length: int
) -> GeneratedText:
    """Prompts of several lengths from ``corpus``, continued to one common length."""
    start = time.monotonic()
    generator = generation_copy(model.target.model, torch.bfloat16)
    ids, counted = [], []
    for prompt_length in shapes.prompt_lengths:
        prompts = corpus.windows(prompts_per_length, prompt_length)
        full = greedy(generator, prompts, shapes.generated_length - prompt_length)
        ids.append(full)
        counted.append(counted_tokens(full, prompt_length))
    text = GeneratedText(torch.cat(ids), torch.cat(counted))
    share, seconds = text.counted.float().mean().item(), time.monotonic() - start
    print(f"{text.ids.numel()} tokens, {share:.0%} counted, in {seconds:.1f} s", flush=True)
    return text


def generation_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights behind transformers' own attention and KV cache."""
    config = copy.deepcopy(model.config)
    copied = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    copied.load_state_dict(model.state_dict())
    return copied.to(model.device).eval()


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: Tensor, num_new_tokens: int) -> Tensor:
    """``[B, P]`` prompts to ``[B, P + num_new_tokens]``, filled with end-of-text after one."""
    full = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=num_new_tokens,
        do_sample=False,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    return F.pad(full, (0, prompts.shape[1] + num_new_tokens - full.shape[1]), value=EOS_ID)


def counted_tokens(full: Tensor, prompt_length: int) -> Tensor:
    """``[B, L]``: the prompt, and what was generated before an end or a repeated 8-gram."""
    ends = torch.cat([distinct_length(part[:, prompt_length:]) for part in full.split(1024)])
    return torch.arange(full.shape[1], device=full.device) < prompt_length + ends[:, None]


def distinct_length(tokens: Tensor) -> Tensor:
    """``[B, T]`` to ``[B]``: the tokens before the first 8-gram that occurred earlier in the row,
    and up to the first end-of-text."""
    count = tokens.shape[1] - REPEAT_TOKENS + 1
    same = tokens[:, :, None] == tokens[:, None, :]
    runs = same[:, :count, :count].clone()
    for shift in range(1, REPEAT_TOKENS):
        runs &= same[:, shift : shift + count, shift : shift + count]
    repeated = first_true(runs.tril(-1).any(-1), otherwise=tokens.shape[1])
    return torch.minimum(repeated, ended_length(tokens))


def ended_length(tokens: Tensor) -> Tensor:
    """``[B, T]`` to ``[B]``: the tokens up to the first end-of-text, itself included."""
    return first_true(tokens == EOS_ID, otherwise=tokens.shape[1] - 1) + 1


def first_true(flags: Tensor, otherwise: int) -> Tensor:
    """``[B, T]`` to ``[B]``: the index of each row's first true entry."""
    return torch.where(flags.any(-1), flags.int().argmax(-1), otherwise)


# ---------------------------------------------------------------- files


@torch.no_grad()
def round_to_bfloat16(module: nn.Module) -> None:
    """Give the weights the values that will ship, so that the head learns from exactly those."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


def save_model(model: Model, data: Path, folder: Path) -> None:
    """The checkpoint in MiMo's layout, with the tokenizer and prompts from ``data``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(model.target.model.state_dict())
    family = model.head.family
    tensors |= {family.tensor_name(name): t for name, t in model.head.state_dict().items()}
    shipped = {name: t.to("cpu", torch.bfloat16).contiguous() for name, t in tensors.items()}
    save_file(shipped, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {"do_sample": False, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    for name, content in (("config", CONFIG), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "prompts.jsonl"):
        shutil.copy(data / name, folder / name)


# ---------------------------------------------------------------- evaluation


def evaluate(args: argparse.Namespace) -> None:
    """Losses, and acceptance on held-out prompts, of the shipped weights in both dtypes."""
    results: dict[str, Any] = {"spec_tokens": args.spec_tokens, "new_tokens": args.new_tokens}
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(ModelRequest(str(args.model), None, True, torch.device("cpu"), dtype))
        assert loaded.head is not None and loaded.tokenizer is not None
        model = Model(loaded.target, loaded.head, loaded.target.device)
        if dtype == torch.float32:
            results |= {"parameters": parameter_counts(model), "loss": losses(model, args.data)}
        prompts = {
            "held_out": read_jsonl(args.data / "eval_prompts.jsonl")[: args.max_prompts],
            "shipped": read_jsonl(args.model / "prompts.jsonl")[: args.max_prompts],
        }
        name = str(dtype).removeprefix("torch.")
        results[name] = {
            kind: acceptance(
                model,
                [loaded.tokenizer(row["prompt"])["input_ids"] for row in rows],
                args.new_tokens,
                args.spec_tokens,
            )
            for kind, rows in prompts.items()
        }
    text = json.dumps(results, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


def parameter_counts(model: Model) -> dict[str, int]:
    parts = {"target": model.target.model, "head": model.head}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def losses(model: Model, data: Path) -> dict[str, float]:
    """The target's loss on each split, on as much of the training text as there is held out."""
    held_out = Corpus(data / "held_out.bin", model.device).in_order(Shapes.head_length)
    validation = Corpus(data / "validation.bin", model.device).in_order(Shapes.head_length)
    torch.manual_seed(0)
    training = Corpus(data / "train.bin", model.device).windows(*held_out.shape)
    splits = {"train": training, "validation": validation, "held_out": held_out}
    return {name: round(target_loss(model, windows), 3) for name, windows in splits.items()}


def acceptance(
    model: Model, prompts: list[list[int]], num_new_tokens: int, spec_tokens: int
) -> dict[str, Any]:
    """Acceptance over all prompts, with and without what follows a first repeated 8-gram.

    A small model soon repeats itself, and repetition is easy to draft: the first number is the
    honest one, the second is what a benchmark that decodes to a fixed length will see.
    """
    generator = generation_copy(model.target.model, model.target.dtype)
    distinct, whole, num_distinct = [], [], 0
    for prompt in prompts:
        full = greedy(generator, torch.tensor([prompt]), num_new_tokens)
        drafts = drafts_of_rows(model, full, spec_tokens)[0]
        new_tokens = full[:, len(prompt) :]
        before_repeat, before_end = int(distinct_length(new_tokens)), int(ended_length(new_tokens))
        num_distinct += before_repeat
        distinct += walk(full[0, : len(prompt) + before_repeat], len(prompt), drafts)
        whole += walk(full[0, : len(prompt) + before_end], len(prompt), drafts)
    return {
        "prompts": len(prompts),
        "tokens_before_repeat": num_distinct,
        "before_repeat": summary(distinct, spec_tokens),
        "all_tokens": summary(whole, spec_tokens),
    }


def summary(accepted: list[int], spec_tokens: int) -> dict[str, Any]:
    """Rates from the drafts accepted by each iteration."""
    count = max(1, len(accepted))
    rates = [sum(a >= position for a in accepted) / count for position in range(1, spec_tokens + 1)]
    return {
        "iterations": len(accepted),
        "acceptance_rate_per_pos": [round(rate, 3) for rate in rates],
        "mean_acceptance_length": round(1 + sum(rates), 3),
    }


@torch.no_grad()
def drafts_of_rows(model: Model, full: Tensor, spec_tokens: int) -> Tensor:
    """``[B, L]`` ids to ``[B, L-1, k]``: what the head would draft if an iteration began there.

    Row i knows the target's hidden state at i and token i+1; after that it follows its own drafts.
    """
    hidden = model.target.forward(full, positions(full), CausalAttention())
    logits = run_chain(
        model.target,
        model.head,
        hidden.pre_norm[:, :-1],
        lambda step, before: full[:, 1:] if step == 1 else before[-1].argmax(-1),
        spec_tokens,
    )
    return torch.stack([step.argmax(-1) for step in logits], dim=-1)


def walk(tokens: Tensor, prompt_length: int, drafts: Tensor) -> list[int]:
    """Decode ``tokens [L]`` again by iterations; returns the drafts that each accepted.

    Token i+1 is the newest when row i drafts i+2..i+k+1. Since ``tokens`` is the target's greedy
    text, the drafts accepted are the leading ones that equal it. An iteration that would look
    past the end is not begun: its acceptance could not be known.
    """
    spec_tokens = drafts.shape[1]
    accepted, row = [], prompt_length - 1
    while row + 1 + spec_tokens < len(tokens):
        wanted = tokens[row + 2 : row + 2 + spec_tokens]
        accepted.append(int((drafts[row] == wanted).int().cumprod(0).sum()))
        row += accepted[-1] + 1
    return accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("prepare", help=prepare.__doc__)
    command.set_defaults(run=prepare)
    command.add_argument("--docs", type=Path, required=True, help="the documentation's _sources")
    command.add_argument("--data", type=Path, required=True, help="folder to write")

    command = commands.add_parser("train", help=train.__doc__)
    command.set_defaults(run=train)
    command.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    command.add_argument("--output", type=Path, required=True, help="model folder to write")
    command.add_argument("--target-seconds", type=float, default=135)
    command.add_argument("--head-seconds", type=float, default=105)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--tiny", action="store_true", help="tiny batches, to try it on a CPU")

    command = commands.add_parser("evaluate", help=evaluate.__doc__)
    command.set_defaults(run=evaluate)
    command.add_argument("--data", type=Path, required=True, help="folder that prepare wrote")
    command.add_argument("--model", type=Path, required=True, help="folder that train wrote")
    command.add_argument("--spec-tokens", type=int, default=3)
    command.add_argument("--new-tokens", type=int, default=128)
    command.add_argument("--max-prompts", type=int, default=NUM_EVAL_PROMPTS)
    command.add_argument("--output", type=Path, help="JSON file to write as well")

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
