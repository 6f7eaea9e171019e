"""Checkpoints whose acceptance is known, in any layout: a bigram table and a head that has it.

Token t is followed by ``SUCCESSOR[t]``, always. The blocks add nothing, so the target's hidden
state is the token's one-hot embedding and lm_head is the table. The head projects the next token's
embedding alone, so that all its drafts are kept, unless something of it is read wrongly.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cgbench.engine.generation import generate
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.heads.families import MIMO, HeadFamily
from cgbench.models.heads.head import HeadForm
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.request.parts import HeadWiring
from tests.support.tiny import (
    CONFIGS,
    MORE_CONFIGS,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)

VOCAB = HIDDEN = 32
SUCCESSOR = [(5 * token + 3) % VOCAB for token in range(VOCAB)]
MAX_NEW_TOKENS = 25
K = 3

Tensors = dict[str, Tensor]


def make_bigram_layout(
    folder: Path,
    kind: str = "mimo",
    family: HeadFamily = MIMO,
    *,
    form: HeadForm | None = None,
    one_plus: bool = False,
    num_modules: int = 1,
    **shape: Any,
) -> Path:
    """A checkpoint of ``kind``, its head of ``family``; ``one_plus``: norms scale by 1 + w."""
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": HIDDEN}
    config = (CONFIGS | MORE_CONFIGS)[kind].to_dict()
    if "text_config" in config:
        sizes = {"text_config": config["text_config"] | sizes}
    modules = {"family": family, "form": form, "num_modules": num_modules}
    make_checkpoint(folder, kind, **modules, **(sizes | shape))
    norm = 0.0 if one_plus else 1.0
    tensors = {name: _bigram(name, t, norm) for name, t in read(folder).items()}
    zeros, eye = torch.zeros(HIDDEN, HIDDEN), torch.eye(HIDDEN)
    parts = (eye, zeros) if family.concat == "EH" else (zeros, eye)
    first = family.first_number(2)
    for number in range(first, first + num_modules):
        tensors[family.tensor_name("proj.weight", number)] = torch.cat(parts, dim=1)
    write(folder, tensors)
    return folder


def _bigram(name: str, tensor: Tensor, norm: float) -> Tensor:
    if name.endswith("embed_tokens.weight"):
        return torch.eye(VOCAB, HIDDEN)
    if name.endswith("lm_head.weight"):
        return table()
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros_like(tensor)
    return torch.full_like(tensor, norm) if "norm" in name else tensor


def table() -> Tensor:
    """The lm_head: row s has its one where the token before s is."""
    matrix = torch.zeros(VOCAB, HIDDEN)
    matrix[SUCCESSOR, range(VOCAB)] = 1.0
    return matrix


def read(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def write(folder: Path, tensors: Tensors) -> None:
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def load(
    folder: Path, head: Path | None = None, mtp_modules: int | None = None, **overrides: Any
) -> LoadedModel:
    where = (torch.device("cpu"), torch.float32)
    head_ref = None if head is None else str(head)
    wiring = HeadWiring(**overrides)
    request = Loading(str(folder), head_ref, True, *where, wiring=wiring, mtp_modules=mtp_modules)
    return load_model(request)


def acceptance_length(model: LoadedModel, k: int = K) -> float:
    """The mean over three requests, whose tokens are checked on the way."""
    room = 24 + MAX_NEW_TOKENS + 2 * k
    spec = make_speculator(model, max_batch_size=3, room=room)
    state = make_state(spec, k, 3)
    prompts = random_prompts(3, vocab=VOCAB)
    prefilled = prefill(spec, prompts, max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS - 1)
    got = generate(EagerRunner(spec, state), prefilled.last.tolist())
    for prompt, tokens in zip(prompts, got.token_ids, strict=True):
        before = [prompt[-1], *tokens[:-1]]
        assert tokens == [SUCCESSOR[token] for token in before]
    accepted = [count for counts in got.accepted for count in counts]
    return 1 + sum(accepted) / len(accepted)
