"""Samples on a device as padded rows, and batches of rows of about one length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtp_head.generated import Sample

# Row lengths are multiples of it, so that there are few shapes and fused attention likes them.
LENGTH_STEP = 32


@dataclass
class Dataset:
    """``ids [N, L]``, zero past a row's end; ``prompt_lengths``, ``lengths`` ``[N]``, in tokens."""

    ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    lengths_on_host: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_generated(self) -> int:
        return int((self.lengths - self.prompt_lengths).sum())

    def rows(self, index: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The rows ``index [B]``, ``[B, length]``, and which of their tokens count: those that
        the target generated."""
        ids = self.ids[index, :length].long()
        positions = torch.arange(length, device=ids.device)
        generated = positions >= self.prompt_lengths[index, None]
        return ids, generated & (positions < self.lengths[index, None])

    def epochs(self, tokens_per_batch: int, spec_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``rows`` of batch after batch, shuffled anew in each epoch, without an end."""
        while True:
            batches = self.batches(tokens_per_batch, spec_tokens)
            for index in torch.randperm(len(batches)).tolist():
                yield self.rows(*batches[index])

    def batches(self, tokens_per_batch: int, spec_tokens: int) -> list[tuple[Tensor, int]]:
        """Every row once: (index, length) of batches of about ``tokens_per_batch`` tokens.

        Rows of a like length go together; which of them is drawn anew. A length leaves
        ``spec_tokens`` + 1 tokens past a multiple of ``LENGTH_STEP``, for the labels of the last.
        """
        extra = spec_tokens + 1
        padded = (self.lengths_on_host - extra).clamp(min=1)
        padded = (padded + LENGTH_STEP - 1) // LENGTH_STEP * LENGTH_STEP
        shuffled = torch.randperm(len(padded))
        order = shuffled[padded[shuffled].argsort(descending=True, stable=True)]
        # To the device in one copy: a copy a batch would wait for the step before it.
        on_device = order.to(self.ids.device)
        found, first = [], 0
        while first < len(order):
            length = int(padded[order[first]]) + extra
            size = max(1, tokens_per_batch // length)
            found.append((on_device[first : first + size], length))
            first += size
        return found


def make_dataset(samples: Sequence[Sample], spec_tokens: int, device: torch.device) -> Dataset:
    """All samples that hold something to draft: two generated tokens and more."""
    kept = [sample for sample in samples if len(sample.token_ids) > 1]
    assert kept, "no sample has two tokens"
    rows = [torch.tensor(s.prompt_ids + s.token_ids, dtype=torch.int32) for s in kept]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    room = int(lengths.max()) + LENGTH_STEP + spec_tokens + 1
    ids = torch.nn.functional.pad(ids, (0, room - ids.shape[1]))
    prompt_lengths = torch.tensor([len(sample.prompt_ids) for sample in kept])
    return Dataset(ids.to(device), prompt_lengths.to(device), lengths.to(device), lengths)
