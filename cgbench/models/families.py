"""Draft head families as data: where a checkpoint keeps its MTP head and how the head is wired.

A mistake in this table never changes the output of lossless decoding, it only lowers acceptance;
so what differs between families is data here, and acceptance is reported per position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HiddenForm = Literal["pre", "post"]


@dataclass(frozen=True, slots=True)
class HeadFamily:
    """One checkpoint layout.

    ``prefix`` starts every tensor name of the head; ``renamed`` maps what follows it to the
    modules of ``DraftHead``, anything else belongs to the decoder block. ``concat`` is the order
    of the projection's input, E the token embedding and H the hidden state. ``hidden_in`` is the
    hidden state fed at draft 1, the target's before or after its final norm; ``chain`` the one
    fed at drafts 2..k, the head's before or after its output norm. ``source`` names the rule's
    origin.
    """

    name: str
    prefix: str
    concat: Literal["EH", "HE"]
    hidden_in: HiddenForm
    chain: HiddenForm
    source: str
    renamed: Mapping[str, str] = field(default_factory=dict)

    def module_name(self, tensor_name: str) -> str:
        """``DraftHead``'s name of a checkpoint tensor, which starts with ``prefix``."""
        rest = tensor_name.removeprefix(self.prefix)
        module, _, leaf = rest.rpartition(".")
        if module in self.renamed:
            return f"{self.renamed[module]}.{leaf}"
        return f"block.{rest}"

    def tensor_name(self, module_name: str) -> str:
        """The checkpoint's name of a ``DraftHead`` tensor: ``module_name`` the other way."""
        module, _, leaf = module_name.rpartition(".")
        for theirs, ours in self.renamed.items():
            if ours == module:
                return f"{self.prefix}{theirs}.{leaf}"
        return self.prefix + module_name.removeprefix("block.")


MIMO = HeadFamily(
    name="mimo",
    prefix="model.mtp_layers.0.",
    concat="HE",
    hidden_in="pre",
    chain="pre",
    source="XiaomiMiMo/MiMo-7B checkpoints and modeling_mimo.py; the chain's form is disputed",
    renamed={
        "token_layernorm": "embed_norm",
        "hidden_layernorm": "hidden_norm",
        "input_proj": "proj",
        "final_layernorm": "out_norm",
    },
)

FAMILIES: tuple[HeadFamily, ...] = (MIMO,)
