"""Write drafts that are partly right, whatever the head would draft.

A head with random weights has next to none of its drafts accepted. So an engine that is wrong after
an accepted draft would look right. Before each iteration the true continuation is therefore written
over the first drafts of every row. How many is drawn, and often it is none, so rows accept unequal
numbers.
"""

from functools import cached_property

import torch
from torch import Tensor

from cgbench.checks.subject import Subject
from cgbench.engine.runner import Runner
from cgbench.engine.state import DecodeState
from cgbench.words import Mode


class Hints:
    """This class writes hints for the rows of one state. Slot i decodes the subject's prompt i.
    After the last prompt they begin again.
    """

    def __init__(self, subject: Subject, state: DecodeState) -> None:
        self.subject = subject
        self.state = state
        self._draw = torch.Generator().manual_seed(subject.seed)

    def write(self, batch_size: int) -> None:
        """Hint the first ``batch_size`` rows, before their next iteration."""
        rows = self.state.rows(batch_size)
        k = rows.spec_tokens
        if not k:
            return
        request = rows.slot_of_row % len(self.subject.prompts)
        newest = rows.seq_len - self._lengths[request]
        index = (newest[:, None] + 1 + rows.offsets[:k]).clamp(0, self._tokens.shape[1] - 1)
        count = torch.randint(k + 1, (batch_size, 1), generator=self._draw).to(index.device)
        hinted = self._tokens[request[:, None], index]
        rows.drafts.copy_(torch.where(rows.offsets[:k] < count, hinted, rows.drafts))

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.tensor([len(p) for p in self.subject.prompts], device=self._device)

    @cached_property
    def _tokens(self) -> Tensor:
        """Return plain greedy decoding's tokens, ``[prompts, max_new_tokens]``."""
        subject = self.subject
        tokens = [subject.plain.tokens(p, subject.max_new_tokens) for p in subject.prompts]
        return torch.tensor(tokens, device=self._device)

    @property
    def _device(self) -> torch.device:
        return self.subject.spec.target.device


class HintedRunner:
    """A ``HintedRunner`` steps another runner, and hints before each step."""

    def __init__(self, subject: Subject, runner: Runner) -> None:
        self.runner = runner
        self.scope = runner.scope
        self.state = runner.state
        self._hints = Hints(subject, runner.state)

    def num_rows(self, batch_size: int) -> int:
        return self.runner.num_rows(batch_size)

    def mode(self, batch_size: int) -> Mode:
        return self.runner.mode(batch_size)

    def step(self, batch_size: int) -> None:
        self._hints.write(batch_size)
        self.runner.step(batch_size)
