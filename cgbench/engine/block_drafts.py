"""Make all drafts of an iteration in one forward, by a parallel drafter.

The drafter's KV holds rows of the context: keys and values that it makes of the target's states.
The k + 1 verified rows are written first. Then a block of k + 1 positions runs over the context:
the newest token, and a mask for each draft. Its rows go to the cache too, from the newest token's
position on. The next iteration's context overwrites them, as it does those past num_accepted.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from cgbench.engine.backends import NamedBackend
from cgbench.engine.calls import Decode, Prefill
from cgbench.errors import BadInputError
from cgbench.kernels.row_updates import RowState
from cgbench.kernels.windows.draft_block import draft_block
from cgbench.models.heads.dflash_head import DFlashHead
from cgbench.models.heads.head import DraftHead

if TYPE_CHECKING:
    from cgbench.engine.iteration import Speculator


def is_parallel(spec: "Speculator") -> bool:
    """Return whether one forward of the head makes every draft."""
    return isinstance(spec.head, DFlashHead)


def check_drafter(head: DraftHead | None, most_drafts: int, attention: NamedBackend) -> None:
    """Check that ``head`` can make ``most_drafts`` at once, and ``attention`` can run its block.

    Other heads pass. Raise ``BadInputError`` for a block that is too short, and for a function of
    the user's own, which may be causal in any case.
    """
    if not isinstance(head, DFlashHead):
        return
    form = head.form
    if most_drafts > form.most_drafts:
        raise BadInputError(
            f"--spec-tokens {most_drafts}: the DFlash drafter was trained on blocks of "
            f"{form.block_size} positions, so it makes {form.most_drafts} drafts at most"
        )
    if ":" in attention.name:
        raise BadInputError(
            f"--attention {attention.name}: the positions of a DFlash drafter's block see one "
            "another, which a function of your own need not do. Use --attention auto, sdpa or "
            "triton"
        )


def keep_context(
    spec: "Speculator", hidden: Tensor, positions: Tensor, call: Decode | Prefill
) -> None:
    """Keep the context rows of the target's states ``hidden [B, S, F]`` at ``positions [B, S]``."""
    head = _drafter(spec)
    head.keep_context(hidden, head.rope(spec.target, hidden, positions), call)


def draft_after_verify(spec: "Speculator", rows: RowState) -> None:
    """Keep verify's rows as context, and make all drafts. The rows are those of ``draft_first``."""
    positions = rows.seq_len[:, None] + rows.offsets
    keep_context(spec, rows.hidden, positions, spec.decode_call(rows, positions))
    draft_all(spec, rows)


def draft_all(spec: "Speculator", rows: RowState) -> None:
    """Make all drafts after the newest token, whose context is in the cache."""
    head = _drafter(spec)
    tokens, positions = draft_block(rows, head.mask_token, spec.cache.room)
    embeds = spec.target.embed(tokens)
    rope = head.rope(spec.target, embeds, positions)
    call = spec.decode_call(rows, positions)
    # The module is called, because the forwards of a graph are counted by a hook.
    block_out: Tensor = head(embeds, None, rope, positions, call)
    logits = spec.logits(head.to_logits_input(block_out[:, 1:]), head.output)
    if not spec.accept.samples_drafts:
        rows.drafts.copy_(spec.settled(spec.draft(rows, logits, 1)))
        return
    for step in range(1, rows.spec_tokens + 1):
        rows.drafts[:, step - 1] = spec.settled(spec.draft(rows, logits[:, step - 1], step))


def _drafter(spec: "Speculator") -> DFlashHead:
    assert isinstance(spec.head, DFlashHead)
    return spec.head
