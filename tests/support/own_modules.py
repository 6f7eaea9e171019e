"""Checkpoints of several MTP modules, each of which is right at its own draft step alone.

Token t is followed by ``SUCCESSOR[t]``, always. The target's hidden state at a row is the row's
token, one-hot. The modules project it alone and leave the token that they are fed beside it.

In the chained form module j turns the features of what it makes by ``TURNS[j]``, and its own output
matrix turns them back. So it reads what the module before it turned, and nothing else. The last two
turns are alike, so the last module can be run again. In the target-fed form module j goes j tokens
on from the row's own.
"""

from pathlib import Path

import torch
from torch import Tensor

from cgbench.models.heads.families import STEP, HeadFamily
from cgbench.models.heads.head import HeadForm
from tests.support.bigram_layouts import HIDDEN, SUCCESSOR, VOCAB, make_bigram_layout, read, write

NUM_MODULES = 3
TURNS = (0, 7, 12, 12)
"""By how many features each module's output is turned; first, the target's."""

NUM_LAYERS = 2


def step() -> Tensor:
    """From a token's features to its successor's."""
    matrix = torch.zeros(HIDDEN, VOCAB)
    matrix[SUCCESSOR, range(VOCAB)] = 1.0
    return matrix


def turn(by: int) -> Tensor:
    return torch.eye(HIDDEN).roll(by, dims=0)


def chained(number: int) -> Tensor:
    """What module ``number``, from 1, makes of the hidden state that the one before it made."""
    return turn(TURNS[number]) @ step() @ turn(TURNS[number - 1]).T


def target_fed(number: int) -> Tensor:
    """What module ``number`` makes of the target's hidden state."""
    return torch.linalg.matrix_power(step(), number)


def make_own_modules(
    folder: Path,
    family: HeadFamily,
    order: tuple[int, ...] = (1, 2, 3),
    *,
    own_outputs: bool = True,
) -> Path:
    """The checkpoint with the modules in ``order``. ``own_outputs``: a chained module's output
    matrix is its own, and not the target's."""
    is_chained = family is STEP
    kind = "step3p7" if is_chained else "mimo"
    form = HeadForm(own_output=is_chained and own_outputs)
    make_bigram_layout(
        folder, kind, family, form=form, num_modules=NUM_MODULES, one_plus=is_chained
    )
    tensors = read(folder)
    lm_head = tensors["lm_head.weight"]
    first = family.first_number(NUM_LAYERS)
    for place, module in enumerate(order):
        projection = chained(module) if is_chained else target_fed(module)
        name = family.tensor_name("proj.weight", first + place)
        tensors[name] = torch.cat([torch.zeros(HIDDEN, HIDDEN), projection], dim=1)
        if form.own_output:
            output = family.tensor_name("block.", first + place) + "lm_head.weight"
            tensors[output] = lm_head @ turn(TURNS[module]).T
    write(folder, tensors)
    return folder
