"""Cut the output matrices of a head to the tokens that it may draft.

Drafts are then an argmax over N rows, and their index is mapped to the target's token by the same
``target_ids`` that an EAGLE-3 head has. The rows are gathered once, when the head is loaded. They
take memory beside the target's matrix that they are from.
"""

from collections.abc import Mapping

import torch
from torch import Size, Tensor, nn

from cgbench.models.division.splits import LM_HEAD
from cgbench.models.heads.head import DraftHead, module_prefix
from cgbench.models.quantised.scaled_modules import scales_of, set_scales
from cgbench.parallel.collectives import sum_over_ranks
from cgbench.parallel.ranks import ALONE, Ranks

_OUTPUT = "output.weight"


@torch.no_grad()
def reduce_outputs(
    head: DraftHead, lm_head: nn.Linear, ids: Tensor, device: torch.device, ranks: Ranks = ALONE
) -> None:
    """Cut the output matrix of every module of ``head`` to the rows ``ids [N]``, in place.

    A module without one of its own gets rows of the target's ``lm_head``, which all such modules
    share. ``ids`` are ascending and on the host, and the head keeps them on ``device``. ``ranks``
    divide the ``lm_head``, if they divide its vocabulary, and no matrix of the head yet.
    """
    of_target: nn.Linear | None = None
    for module in head.mtp_modules:
        if module.output is not None:
            module.output = _rows_of(module.output, ids, ALONE)
        else:
            of_target = _rows_of(lm_head, ids, ranks) if of_target is None else of_target
            module.output, module.has_target_rows = of_target, True
        module.target_ids = ids.to(device)


def _rows_of(output: nn.Linear, ids: Tensor, ranks: Ranks) -> nn.Linear:
    """Return a linear layer of the rows ``ids`` of ``output``, of which ``ranks`` hold parts."""
    weight = output.weight.detach()
    ids = ids.to(weight.device)
    with torch.device("meta"):
        cut = nn.Linear(output.in_features, len(ids), bias=output.bias is not None)
    cut.weight = nn.Parameter(_gathered(weight, ids, ranks), requires_grad=False)
    if output.bias is not None:
        bias = _gathered(output.bias.detach()[:, None], ids, ranks)[:, 0]
        cut.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    if (scales := scales_of(output, "weight")) is not None:
        # Rows of one block go apart, so that each row gets a copy of its block's scales.
        scale, row_blocks = scales
        of_rows = _gathered(scale.index_select(0, row_blocks), ids, ranks)
        own = torch.arange(len(ids), dtype=torch.int32, device=weight.device)
        set_scales(cut, "weight", of_rows, own)
    return cut


def _gathered(rows: Tensor, ids: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows ``ids`` of a matrix ``[V, K]``, of which each rank holds ``rows``.

    They are gathered as bytes, because neither an index nor a sum takes every type.
    """
    raw = rows.contiguous().view(torch.uint8)
    if ranks.size == 1:
        return raw.index_select(0, ids).view(rows.dtype)
    first = ranks.rank * len(rows)
    is_here = (ids >= first) & (ids < first + len(rows))
    found = raw.index_select(0, (ids - first).clamp(0, len(rows) - 1))
    # One rank has each row, and every other rank adds zeros.
    return sum_over_ranks(found * is_here[:, None]).view(rows.dtype)


def reduced_scales(
    head: DraftHead, of_target: Mapping[str, Size], of_head: Mapping[str, Size], num_tokens: int
) -> dict[str, Size]:
    """Return the shapes of the scales of the FP8 weights of a ``head`` that was cut.

    ``of_target`` and ``of_head`` are the scales' shapes by weight, before the cut. A matrix that
    modules share is named once.
    """
    found = dict(of_head)
    seen: set[int] = set()
    for module in head.mtp_modules:
        name = module_prefix(module.place) + _OUTPUT
        before = of_target.get(LM_HEAD) if module.has_target_rows else of_head.get(name)
        found.pop(name, None)
        if before is not None and id(module.output) not in seen:
            found[name] = Size((num_tokens, before[-1]))
        seen.add(id(module.output))
    return found
