"""Train the default model: a small causal LM of Python text with an MTP draft head.

The model exists so that `cgbench run default` decodes real text with real acceptance anywhere,
without a model hub. It is a Qwen2 in MiMo-7B's checkpoint layout, trained in a few minutes on one
GPU from text that anyone can get: the standard library of the Python that runs this script, and
the sources of Python's documentation (Debian's package python3.11-doc, folder `_sources`).

    python scripts/training/train_default_model.py prepare --docs _sources --data DATA
    python scripts/training/train_default_model.py train --data DATA --output MODEL
    python scripts/training/train_default_model.py evaluate --data DATA --model MODEL

The regime that shapes it: 5 M parameters see eleven million tokens many times over, so the target
memorises; weight decay and taking the checkpoint of least validation loss hold it back. The head
is trained in three stages, each nearer to what it meets in decoding: beside the target on its
next-next-token loss (as DeepSeek-V3 does), then on its own recurrent chain against the frozen
target's predictions, then the same on text that the target generated.

The files held out and the flow of each command are here, so that the provenance of the weights can
be read from the top; the stages are in the modules of `default_model/` beside this file, and what
other heads are trained with too in those of `mtp_training/`.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from default_model.prompts import NUM_EVAL_PROMPTS, read_jsonl, write_prompts
from default_model.sources import read_sources, training_files
from default_model.tokenizer import save_tokenizer, train_tokenizer

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

VALIDATION_EVERY = 50


def prepare(args: argparse.Namespace) -> None:
    """Text to token files: `train`, `validation` and `held_out`, and prompts cut from held-out."""
    # In the commands, so that --help waits for no torch.
    from default_model.corpus import write_tokens

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


def held_out_names() -> list[str]:
    modules = [f"Lib/{name}" for name in HELD_OUT_MODULES]
    return modules + [f"Doc/{name}" for name in HELD_OUT_PAGES]


def train(args: argparse.Namespace) -> None:
    """Target with head, then the head alone; MODEL is written after each."""
    import torch

    from default_model.config import TINY, Shapes
    from default_model.corpus import Corpus
    from default_model.generation import generate_text
    from default_model.model import new_model, round_to_bfloat16, save_model
    from default_model.training import train_head, train_target

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


def evaluate(args: argparse.Namespace) -> None:
    """Losses, and acceptance on held-out prompts, of the shipped weights in both dtypes."""
    import torch

    from cgbench.models.loader import load_model
    from cgbench.models.loading_plan import Loading
    from default_model.evaluation import acceptance, losses, parameter_counts
    from mtp_training.model import Model

    results: dict[str, Any] = {"spec_tokens": args.spec_tokens, "new_tokens": args.new_tokens}
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_model(Loading(str(args.model), None, True, torch.device("cpu"), dtype))
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
