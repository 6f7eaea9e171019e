"""A checkpoint whose acceptance is known: a bigram table, and a head that computes the same."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.tiny import make_checkpoint

VOCAB = HIDDEN = 32


SUCCESSOR = [(5 * token + 3) % VOCAB for token in range(VOCAB)]
WRONG_AFTER = {3, 7, 20}


def make_bigram(folder: Path, wrong_after: set[int]) -> Path:
    """The checkpoint; its head errs after the tokens ``wrong_after``."""
    make_checkpoint(folder, "mimo", vocab_size=VOCAB, hidden_size=HIDDEN)
    file = folder / "model.safetensors"
    tensors = {name: _bigram(name, tensor) for name, tensor in load_file(file).items()}
    sees = torch.eye(HIDDEN)
    for token in wrong_after:
        sees[:, token] = torch.eye(HIDDEN)[:, (token + 1) % VOCAB]
    proj = torch.cat([torch.zeros(HIDDEN, HIDDEN), sees], dim=1)
    tensors["model.mtp_layers.0.input_proj.weight"] = proj
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def _bigram(name: str, tensor: Tensor) -> Tensor:
    if name == "model.embed_tokens.weight":
        return torch.eye(VOCAB, HIDDEN)
    if name == "lm_head.weight":
        table = torch.zeros(VOCAB, HIDDEN)
        table[SUCCESSOR, range(VOCAB)] = 1.0
        return table
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return torch.zeros_like(tensor)
    return torch.ones_like(tensor) if "norm" in name else tensor
