"""The head's folder: tensors, config and card, and what the head is worth once loaded from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cgbench.engine.acceptance import Greedy
from cgbench.engine.acceptance_counts import before_repeat
from cgbench.models.heads.head import DraftHead
from cgbench.models.loader import LoadedModel
from cgbench.models.target import Target
from mtp_head.decoding import Decoder
from mtp_training.acceptance import summary
from mtp_training.model import STATED, head_tensors


def save_head(head: DraftHead, target: Target, folder: Path) -> None:
    """``model.safetensors`` under the family's names, bfloat16, and the config of its target."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head_tensors(head), folder / "model.safetensors", metadata={"format": "pt"})
    config = target.model.config.to_diff_dict() | {
        "dtype": "bfloat16",
        "num_nextn_predict_layers": 1,
        **STATED,
    }
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Measured:
    """Greedy acceptance on one set of prompts, up to each request's first repeated 8-gram and
    over all tokens; both in the form of ``summary``."""

    name: str
    num_prompts: int
    before_repeat: dict[str, Any]
    all_tokens: dict[str, Any]


def measure(
    model: LoadedModel,
    sets: Mapping[str, Sequence[list[int]]],
    *,
    spec_tokens: int,
    batch_size: int,
    max_new_tokens: int,
) -> list[Measured]:
    """Decode every set of prompts, token ids, greedily through the engine."""
    longest = max(len(prompt) for prompts in sets.values() for prompt in prompts)
    decoder = Decoder(
        model,
        spec_tokens=spec_tokens,
        batch_size=batch_size,
        room=longest + max_new_tokens + 2 * spec_tokens,
        accept=Greedy(),
    )
    measured = []
    for name, prompts in sets.items():
        distinct: list[int] = []
        whole: list[int] = []
        for first in range(0, len(prompts), batch_size):
            out = decoder.decode(list(prompts[first : first + batch_size]), max_new_tokens)
            for tokens, accepted in zip(out.token_ids, out.accepted, strict=True):
                distinct += before_repeat(tokens, accepted)
                whole += accepted
        measured.append(
            Measured(
                name, len(prompts), summary(distinct, spec_tokens), summary(whole, spec_tokens)
            )
        )
    decoder.release()
    return measured


def acceptance_table(measured: Sequence[Measured]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| prompts | counted | iterations | acceptance rate per position | "
        "mean acceptance length |",
        "|---|---|---|---|---|",
    ]
    for each in measured:
        for counted, rates in (
            ("before repeat", each.before_repeat),
            ("all tokens", each.all_tokens),
        ):
            per_pos = " ".join(f"{rate:.3f}" for rate in rates["acceptance_rate_per_pos"])
            lines.append(
                f"| {each.num_prompts} {each.name} | {counted} | {rates['iterations']} | "
                f"{per_pos} | {rates['mean_acceptance_length']:.3f} |"
            )
    return "\n".join(lines)


CARD = Path(__file__).with_name("card.md")


def write_card(folder: Path, **facts: Any) -> None:
    (folder / "README.md").write_text(CARD.read_text().format(folder=folder.name, **facts))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
