"""Plan what the ranks share of a drafter with layers of its own: an EAGLE-3 head, a DFlash drafter.

Its layers are Llama's or Qwen3's, whatever the target's are. They are divided by heads and by the
MLP's features, as vLLM and SGLang do unless they are told otherwise. Its ``fc`` and its norms are
whole, and so is its embedding. What it reads of the target is whole on every rank already.
"""

from dataclasses import replace

from cgbench.errors import BadInputError
from cgbench.models.attention_hook import ShapeProbe
from cgbench.models.division.splits import Splits, kv_copies, plain_split
from cgbench.models.heads.head import DraftHead


def drafter_splits(head: DraftHead, num_ranks: int, num_kv_heads: int) -> Splits:
    """Return how ``num_ranks`` ranks share the layers of ``head``.

    Each layer has ``num_kv_heads`` key-value heads. Of fewer than the ranks each rank holds one.
    """
    copies = kv_copies(num_kv_heads, num_ranks)
    found = {}
    for name, _ in head.named_parameters():
        split = plain_split(name) if name.startswith("block.") else None
        if split is not None:
            is_copied = name.split(".")[-2] in ("k_proj", "v_proj")
            found[name] = replace(split, num_copies=copies) if is_copied else split
    return found


def check_drafter(head: DraftHead, num_ranks: int, vocab_size: int) -> None:
    """Check that the ranks divide the draft vocabulary of ``head`` if they divide the target's.

    ``vocab_size`` is the target's. Raise ``BadInputError`` if they do not.
    """
    output = head.output
    if output is None or vocab_size % num_ranks or output.out_features % num_ranks == 0:
        return
    raise BadInputError(
        f"--tp {num_ranks}: divides the target's {vocab_size:,} tokens, and not the "
        f"{output.out_features:,} that the {head.family.kind} drafts"
    )


def check_drafter_layers(head: DraftHead, num_ranks: int, probe: ShapeProbe) -> None:
    """Check that the ranks divide the heads and the features of the layers of ``head``.

    ``probe`` has seen the whole layers. Raise ``BadInputError`` if the ranks do not divide them.
    """
    advice = f"of the {head.family.kind}. Use --tp-head whole"
    for layer in head.layer_numbers:
        for what, count in (
            ("attention heads", probe.num_query_heads[layer]),
            ("key-value heads", probe.num_kv_heads[layer]),
        ):
            is_copied = what == "key-value heads" and num_ranks % count == 0
            if count % num_ranks and not is_copied:
                raise BadInputError(
                    f"--tp {num_ranks}: does not divide the {count} {what} {advice}"
                )
    for name, parameter in head.named_parameters():
        if name.endswith("gate_proj.weight") and len(parameter) % num_ranks:
            raise BadInputError(
                f"--tp {num_ranks}: does not divide the {len(parameter)} features of the MLP "
                f"{advice}"
            )
