"""Train a one-layer MTP head for a model that has none, on text the model itself writes.

The target answers prompts through cgbench's own engine; the head learns to draft those answers on
its recurrent chain of k steps, exactly as decoding runs it, against the frozen target. The folder
written is what `--head` takes:

    python scripts/training/train_mtp_head.py --model MODEL --data FILES --out HEAD
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
import sys
from pathlib import Path

from cgbench.errors import CgbenchError


def main() -> None:
    args = parse_arguments()
    # Here, so that --help waits for no torch.
    from mtp_head.command import train

    try:
        train(args)
    except CgbenchError as error:
        sys.exit(f"error: {error}")


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
