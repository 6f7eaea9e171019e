"""Train a one-layer MTP head for a model that has none, on text the model itself writes.

The target answers prompts through cgbench's own engine; the head learns to draft those answers on
its recurrent chain of k steps, exactly as decoding runs it, against the frozen target. The folder
written is what `--head` takes:

    python scripts/train_mtp_head.py --model MODEL --data FILES --out HEAD
    cgbench run MODEL --head HEAD --spec-tokens 3

`--data` takes prompts (FILE.jsonl), Python sources (.py) and texts (.txt), or folders of them; left
out, it is the standard library of the Python that runs this script. To documented functions and
paragraphs come small programming exercises and, where the tokenizer has a chat template, requests
put together from templates. One prompt in twenty is held out.

The regime: text costs one iteration of a small captured graph for each token of a large batch, so
two minutes make millions of tokens; a training step costs the target's forward and, for a small
model, as much again for k times the vocabulary's logits, which are worked through in parts. Both
are bounded in minutes. The stages are in the modules of `mtp_head/` and `mtp_training/`.
"""

import argparse
import copy
import json
import platform
import shlex
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from cgbench.errors import BadInputError, CgbenchError
from cgbench.measure.setup import DEFAULT_DTYPE, choose_device
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loading import LoadedModel, load_model
from cgbench.models.request import ModelRequest
from mtp_head.checkpoint import (
    Measured,
    acceptance_table,
    device_name,
    measure,
    save_head,
    write_card,
)
from mtp_head.dataset import make_dataset
from mtp_head.generated import (
    GenerationSettings,
    Sample,
    generate_samples,
    read_samples,
    write_samples,
)
from mtp_head.initial import new_model
from mtp_head.prompts import as_chat, make_prompts, read_texts
from mtp_head.training import train_head
from mtp_training.model import TRAINED, Model
from mtp_training.optimise import Budget

# Rows that the initial head is fitted to.
NUM_FITTED = 8
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))


def main() -> None:
    args = parse_arguments()
    try:
        train(args)
    except CgbenchError as error:
        sys.exit(f"error: {error}")


def train(args: argparse.Namespace) -> None:
    """Text, head, folder, and what the head loaded from that folder is worth."""
    torch.manual_seed(args.seed)
    device = choose_device("auto")
    loaded = load(args, device, with_head=False)
    samples = get_samples(args, loaded)
    write_report("samples", describe(samples))

    training = make_dataset([s for s in samples if not s.held_out], args.spec_tokens, device)
    held_out = make_dataset([s for s in samples if s.held_out], args.spec_tokens, device)
    fitted = training.batches(args.tokens_per_batch, args.spec_tokens)[0]
    model = new_model(loaded.target, TRAINED, training.rows(*fitted)[0][:NUM_FITTED])
    untrained = measure_held_out(args, with_head_of(loaded, model), samples, "untrained head, ")
    start = time.monotonic()
    history = train_head(
        model,
        training,
        held_out,
        spec_tokens=args.spec_tokens,
        tokens_per_batch=args.tokens_per_batch,
        peak_lr=args.lr,
        budget=Budget(None if args.steps else 60 * args.minutes, args.steps),
    )
    history["seconds"] = time.monotonic() - start
    save_head(model.head, loaded.target, args.out)

    final = load(args, device, with_head=True)
    measured = measure_held_out(args, final, samples) + measure_files(args, final)
    history |= {"samples": describe(samples), "measured": [asdict(m) for m in measured]}
    (args.out / "history.json").write_text(json.dumps(history, indent=1) + "\n")
    table = acceptance_table([*measured, *untrained])
    write_card(args.out, table=table, **card_facts(args, final, samples, history))
    print(f"{table}\nwrote {args.out}")


def load(args: argparse.Namespace, device: torch.device, *, with_head: bool) -> LoadedModel:
    head_ref = str(args.out) if with_head else None
    dtype = DEFAULT_DTYPE[device.type]
    model = load_model(ModelRequest(args.model, head_ref, with_head, device, dtype, args.seed))
    if model.tokenizer is None:
        raise BadInputError(f"--model {args.model}: the folder has no tokenizer files")
    return model


def get_samples(args: argparse.Namespace, model: LoadedModel) -> list[Sample]:
    """The generated text: from ``--generated`` where that is there, else made, and kept there."""
    if args.generated is not None and args.generated.exists():
        return read_samples(args.generated)
    assert model.tokenizer is not None
    data = args.data or [STANDARD_LIBRARY]
    prompts = make_prompts(data, model.tokenizer, args.instructions, args.seed)
    write_report("prompts", dict(Counter(prompt.kind for prompt in prompts)))
    settings = GenerationSettings(
        batch_size=args.batch_size,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        sampled_share=args.sampled_share,
        seconds=60 * args.generate_minutes,
        seed=args.seed,
    )
    samples = generate_samples(model, prompts[: args.max_prompts], settings)
    if args.generated is not None:
        write_samples(args.generated, samples)
    return samples


def describe(samples: Sequence[Sample]) -> dict[str, Any]:
    kinds = Counter(sample.kind for sample in samples)
    return {
        "prompts": len(samples),
        "held_out": sum(sample.held_out for sample in samples),
        "tokens": sum(len(sample.token_ids) for sample in samples),
        "kinds": dict(sorted(kinds.items())),
    }


def with_head_of(loaded: LoadedModel, model: Model) -> LoadedModel:
    head = copy.deepcopy(model.head).to(loaded.target.dtype).eval()
    return replace(loaded, head=head)


def measure_held_out(
    args: argparse.Namespace, model: LoadedModel, samples: Sequence[Sample], prefix: str = ""
) -> list[Measured]:
    """Acceptance on held-out prompts, a set for each kind."""
    sets: dict[str, list[list[int]]] = {}
    for sample in samples:
        if sample.held_out:
            sets.setdefault(f"{prefix}held-out {sample.kind}", []).append(sample.prompt_ids)
    limited = {name: prompts[: args.eval_prompts] for name, prompts in sorted(sets.items())}
    return measure_sets(args, model, limited)


def measure_files(args: argparse.Namespace, model: LoadedModel) -> list[Measured]:
    """Acceptance on the prompts of ``--evaluate`` and ``--evaluate-chat``."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    sets = {path.stem: read_texts(path) for path in args.evaluate}
    for path in args.evaluate_chat:
        texts = [as_chat(tokenizer, text) for text in read_texts(path)]
        sets[f"{path.stem} (chat)"] = texts
    encoded = {name: tokenizer(texts)["input_ids"] for name, texts in sets.items()}
    return measure_sets(args, model, encoded) if encoded else []


def measure_sets(
    args: argparse.Namespace, model: LoadedModel, sets: dict[str, list[list[int]]]
) -> list[Measured]:
    return measure(
        model,
        sets,
        spec_tokens=args.spec_tokens,
        batch_size=min(args.batch_size, max(map(len, sets.values()))),
        max_new_tokens=args.max_new_tokens,
    )


def card_facts(
    args: argparse.Namespace, model: LoadedModel, samples: list[Sample], history: dict[str, Any]
) -> dict[str, Any]:
    assert model.head is not None
    facts = describe(samples)
    best = history["best"]
    return {
        "target": model.label,
        "parameters": sum(p.numel() for p in model.head.parameters()),
        "fingerprint": fingerprint(model.target, None),
        "prompts": facts["prompts"],
        "tokens": facts["tokens"],
        "data": ", ".join(path.name for path in args.data) or the_standard_library(),
        "instructions": facts["kinds"].get("chat", 0),
        "steps": history["steps"],
        "tokens_per_batch": args.tokens_per_batch,
        "train_seconds": history["seconds"],
        "lr": args.lr,
        "seed": args.seed,
        "spec_tokens": args.spec_tokens,
        "loss": best["loss"],
        "validation_loss": best["validation_loss"],
        "best_step": best["step"],
        "device": device_name(model.target.device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "command": shlex.join(["python", "scripts/train_mtp_head.py", *map(bare, sys.argv[1:])]),
        "dtype": str(model.target.dtype).removeprefix("torch."),
        "max_new_tokens": args.max_new_tokens,
    }


def the_standard_library() -> str:
    return f"the standard library of {platform.python_implementation()} {platform.python_version()}"


def bare(argument: str) -> str:
    """An argument as the card shows it: a path without its folders."""
    return Path(argument).name if "/" in argument else argument


def write_report(name: str, facts: dict[str, Any]) -> None:
    print(f"{name}: {json.dumps(facts)}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", required=True, help="the target: a folder, a hub id or default")
    add("--data", type=Path, nargs="*", default=[], help=".jsonl, .py and .txt files, or folders")
    add("--out", type=Path, required=True, help="head folder to write")
    add("--generated", type=Path, help="FILE.jsonl to keep the generated text in, or to reuse")
    add("--instructions", type=int, default=12000, help="chat requests to make from templates")
    add("--max-prompts", type=int, help="take no more prompts than this")
    add("--max-prompt-tokens", type=int, default=256, help="leave out longer prompts")
    add("--max-new-tokens", type=int, default=192)
    add("--batch-size", type=int, default=256, help="requests decoded together")
    add("--sampled-share", type=float, default=0.2, help="of the text, at temperature 0.7")
    add("--generate-minutes", type=float, default=1.7)
    add("--spec-tokens", type=int, default=3, help="length of the chain that is trained")
    add("--minutes", type=float, default=4.5, help="of training")
    add("--steps", type=int, help="train this many steps instead")
    add("--tokens-per-batch", type=int, default=16384)
    add("--lr", type=float, default=1e-3, help="peak learning rate")
    add("--seed", type=int, default=0)
    add("--eval-prompts", type=int, default=64, help="held-out prompts to measure, of each kind")
    add("--evaluate", type=Path, nargs="*", default=[], help="FILE.jsonl to measure on as it is")
    add("--evaluate-chat", type=Path, nargs="*", default=[], help="the same, as a user's message")
    return parser.parse_args()


if __name__ == "__main__":
    main()
