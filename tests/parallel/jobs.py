"""What two ranks and one process are both asked: every rank imports this module."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cgbench.engine.acceptance import AcceptanceRule, Greedy, Sampled, shared_rule
from cgbench.engine.runner import EagerRunner
from cgbench.models.families import DEEPSEEK, HeadFamily
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loading import LoadedModel, load_model
from cgbench.models.presets import PRESETS, Preset
from cgbench.models.request import ModelRequest
from cgbench.parallel.collectives import argmax_over_ranks, watched_collectives
from cgbench.parallel.ranks import agreed, gathered, rank
from tests.tiny import SHAPE, decode_prompts, make_speculator, make_state, random_prompts

PROMPTS = random_prompts(5)
"""Of five lengths, for a batch of three and then one of two: ragged, and re-packed."""
MAX_NEW_TOKENS = 20
TIED = Preset("tied", "a test", {**SHAPE, "model_type": "qwen3", "tie_word_embeddings": True})
WHOLE_VOCABULARY = Preset("odd", "a test", {**SHAPE, "model_type": "qwen3", "vocab_size": 65})


@dataclass(frozen=True)
class Told:
    """What a model did on some number of ranks."""

    fingerprint: str
    tokens: dict[str, list[list[int]]]
    accepted: dict[str, list[list[int]]]
    kv_heads: set[int]


def tell_all(folders: dict[str, Path], presets: tuple[Preset, ...]) -> list[dict[str, Told]]:
    """Everything of every rank, in one start: each checkpoint and preset by name."""
    torch.set_num_threads(1)
    told = {
        f"{name} {head}": tell(load(folder, head))
        for name, folder in folders.items()
        for head in ("divided", "whole")
    }
    with mock.patch.dict(PRESETS, {preset.name: preset for preset in presets}):
        for preset in presets:
            told[preset.name] = tell(load(Path(f"preset:{preset.name}"), "divided"))
    return gathered(told)


def load(ref: Path, head: str) -> LoadedModel:
    return load_model(
        ModelRequest(
            str(ref), None, True, torch.device("cpu"), torch.float32, divided_head=head == "divided"
        )
    )


def tell(model: LoadedModel) -> Told:
    tokens, accepted = {}, {}
    for k in (1, 3):
        for rule in (Greedy(), Sampled(temperature=0.7), Sampled(top_p=0.9, drafts="greedy")):
            out = [decode(model, rule, k, PROMPTS[at : at + 3]) for at in (0, 3)]
            name = f"{rule} k={k}"
            tokens[name] = [ids for each in out for ids in each.token_ids]
            accepted[name] = [counts for each in out for counts in each.accepted]
    kv_heads = {keys[0] for keys, _ in model.kv_shapes.values()}
    return Told(fingerprint(model.target, model.head), tokens, accepted, kv_heads)


def decode(model: LoadedModel, rule: AcceptanceRule, k: int, prompts: list[list[int]]) -> Any:
    accept = shared_rule(rule, model.target.argmax)
    spec = make_speculator(model, max_batch_size=3, room=64, accept=accept)
    return decode_prompts(spec, EagerRunner(spec, make_state(spec, k, 3)), prompts, MAX_NEW_TOKENS)


def look_at_collectives(folder: Path) -> dict[str, Any]:
    """What crosses the ranks in a greedy iteration, and an argmax with ties."""
    model = load(folder, "divided")
    with watched_collectives() as seen:
        decode(model, Greedy(), 3, PROMPTS[:1])
    tied = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 7.0]])
    part = tied.chunk(2, 1)[rank()]
    return {
        "gathered": {call.shape for call in seen if call.kind == "all_gather"},
        "kinds": {call.kind for call in seen},
        "argmax": gathered(argmax_over_ranks(part).tolist()),
        "agreed": gathered(agreed(f"rank {rank()}'s")),
    }


FAMILIES: dict[str, HeadFamily] = {"glm4_moe": DEEPSEEK}
