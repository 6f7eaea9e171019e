"""From the flags of `scripts/training/train_mtp_head.py` to the head's folder, stage by stage."""

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

from cgbench.errors import BadInputError
from cgbench.measure.setup import choose_device
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import DEFAULT_DTYPE, Loading
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
    model = load_model(Loading(args.model, head_ref, with_head, device, dtype, args.seed))
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
        "command": shlex.join(
            ["python", "scripts/training/train_mtp_head.py", *map(bare, sys.argv[1:])]
        ),
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
