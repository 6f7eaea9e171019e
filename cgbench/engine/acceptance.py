"""Acceptance rules: how many drafts verify keeps, and what it emits after them."""

from typing import Protocol

from torch import Tensor


class AcceptanceRule(Protocol):
    """On the device, capturable, ragged over the batch."""

    def __call__(self, drafts: Tensor, logits: Tensor, num_accepted: Tensor, out: Tensor) -> None:
        """``drafts [B, k]`` and the target's ``logits [B, k + 1, V]`` decide ``num_accepted [B]``
        in 0..k and ``out [B, k + 1]``: out[j] = draft j + 1 for j < num_accepted, then the bonus
        or recovered token, then any valid id. Both are written in place."""
        ...


def greedy(drafts: Tensor, logits: Tensor, num_accepted: Tensor, out: Tensor) -> None:
    """Keep the leading drafts that equal the target's argmax; the argmax follows them.

    Lossless: the tokens emitted are those of plain greedy decoding.
    """
    out.copy_(logits.argmax(-1))
    agrees = drafts == out[:, :-1]
    num_accepted.copy_(agrees.cumprod(-1).sum(-1))


ACCEPTANCE_RULES: dict[str, AcceptanceRule] = {"greedy": greedy}
