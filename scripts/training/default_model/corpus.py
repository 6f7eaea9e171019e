"""Token files: texts are written to them once, and read from them in windows."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from default_model.config import EOS_ID


def write_tokens(tokenizer: Tokenizer, texts: list[str], path: Path) -> int:
    """All texts as one uint16 file, an end-of-text after each; returns the number of tokens."""
    encoded = tokenizer.encode_batch_fast(texts)
    flat = [token for doc in encoded for token in (*doc.ids, EOS_ID)]
    np.array(flat, dtype=np.uint16).tofile(path.with_suffix(".bin"))
    return len(flat)


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
