"""Draft head families as data: where a checkpoint keeps its MTP head and how the head is wired.

A mistake in this table never changes the output of lossless decoding, it only lowers acceptance;
so what differs between families is data here, the disputed points can be overridden, and
acceptance is reported per position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from cgbench.errors import BadInputError

HiddenForm = Literal["pre", "post"]
Concat = Literal["EH", "HE"]
FirstEmbed = Literal["kept", "zeroed"]


@dataclass(frozen=True, slots=True)
class HeadFamily:
    """One checkpoint layout.

    ``names`` maps each module of ``DraftHead`` to its name in the checkpoint, where ``{i}`` is the
    module's number: counted on from the target's last layer if ``counts_on``, else from 0.
    ``concat`` is the order of the projection's input, E the token embedding and H the hidden state.
    ``hidden_in`` is the hidden state fed at draft 1, the target's before or after its final norm;
    ``chain`` the one fed at drafts 2..k, the head's before or after its output norm. ``out_norm``
    is the norm before the shared lm_head: the head's own, the target's final one, or none.
    ``input_norms``: E and H are normed before the projection; ``block_norm``: the block norms its
    input. ``norm_form``: head norms scale as the target's do, or by 1 + w whatever the target's
    do. ``first_embed``: whether the embedding fed at position 0 is zeroed. ``dropped`` is an infix
    that some of the checkpoint's names carry. ``model_types`` are the targets that the layout
    ships with, where names alone do not tell. ``source`` names the rule's origin.
    """

    name: str
    names: Mapping[str, str]
    source: str
    concat: Concat = "EH"
    hidden_in: HiddenForm = "post"
    chain: HiddenForm = "post"
    out_norm: Literal["own", "target", "none"] = "own"
    input_norms: bool = True
    block_norm: bool = True
    norm_form: Literal["target", "one_plus"] = "target"
    first_embed: FirstEmbed = "kept"
    counts_on: bool = False
    dropped: str = ""
    model_types: frozenset[str] = frozenset()

    def first_number(self, num_layers: int) -> int:
        """The number that a checkpoint gives the head's first module, behind ``num_layers``."""
        return num_layers if self.counts_on else 0

    def prefixes(self, number: int) -> dict[str, str]:
        """``names`` for module ``number``: each module's prefix in the checkpoint."""
        return {ours: theirs.format(i=number) for ours, theirs in self.names.items()}

    def tensor_name(self, module_name: str, number: int = 0) -> str:
        """The checkpoint's name of a ``DraftHead`` tensor, such as ``block.mlp.up_proj.weight``."""
        ours, _, rest = module_name.partition(".")
        return f"{self.prefixes(number)[ours]}.{rest}"


_DEEPSEEK_NAMES = {
    "embed_norm": "model.layers.{i}.enorm",
    "hidden_norm": "model.layers.{i}.hnorm",
    "proj": "model.layers.{i}.eh_proj",
    "block": "model.layers.{i}",
    "out_norm": "model.layers.{i}.shared_head.norm",
}
_MIMO_NAMES = {
    "embed_norm": "model.mtp_layers.{i}.token_layernorm",
    "hidden_norm": "model.mtp_layers.{i}.hidden_layernorm",
    "proj": "model.mtp_layers.{i}.input_proj",
    "block": "model.mtp_layers.{i}",
    "out_norm": "model.mtp_layers.{i}.final_layernorm",
}
_QWEN_NAMES = {
    "embed_norm": "mtp.pre_fc_norm_embedding",
    "hidden_norm": "mtp.pre_fc_norm_hidden",
    "proj": "mtp.fc",
    "block": "mtp.layers.{i}",
    "out_norm": "mtp.norm",
}

MIMO = HeadFamily(
    name="mimo",
    names=_MIMO_NAMES,
    concat="HE",
    hidden_in="pre",
    chain="pre",
    source="XiaomiMiMo/MiMo-7B checkpoints and modeling_mimo.py; the chain's form is disputed",
)
DEEPSEEK = HeadFamily(
    name="deepseek",
    names=_DEEPSEEK_NAMES,
    counts_on=True,
    source="deepseek-ai/DeepSeek-V3 README_WEIGHTS, zai-org/GLM-4.5, transformers' MtpModel; "
    "vLLM zeroes the embedding at position 0 and chains before the norm",
)
STEP = HeadFamily(
    name="step",
    names=_DEEPSEEK_NAMES,
    hidden_in="pre",
    chain="pre",
    norm_form="one_plus",
    counts_on=True,
    dropped="transformer.",
    model_types=frozenset({"step3p5", "step3p7"}),
    source="stepfun-ai/Step-3.5 checkpoints, vLLM's step3p5_mtp",
)
QWEN = HeadFamily(
    name="qwen",
    names=_QWEN_NAMES,
    norm_form="one_plus",
    source="Qwen/Qwen3-Next and Qwen3.5 checkpoints, vLLM's qwen3_next_mtp",
)
MELLUM = HeadFamily(
    name="mellum",
    names=_QWEN_NAMES,
    model_types=frozenset({"mellum"}),
    source="JetBrains' Mellum in transformers: Qwen's names, the target's plain norms",
)
ERNIE = HeadFamily(
    name="ernie",
    names={
        "embed_norm": "model.mtp_emb_norm.{i}",
        "hidden_norm": "model.mtp_hidden_norm.{i}",
        "proj": "model.mtp_linear_proj.{i}",
        "block": "model.mtp_block.{i}",
    },
    hidden_in="pre",
    chain="pre",
    out_norm="target",
    source="baidu/ERNIE-4.5-21B-A3B-PT checkpoint, FastDeploy's ernie4_5_mtp",
)
SPECULATORS = HeadFamily(
    name="speculators",
    names={ours: theirs.removeprefix("model.") for ours, theirs in _MIMO_NAMES.items()},
    source="vllm-project/speculators 0.9, MTPDraftModel",
)
EAGLE = HeadFamily(
    name="eagle",
    names={"proj": "fc", "block": "layers.{i}"},
    out_norm="none",
    input_norms=False,
    block_norm=False,
    source="SafeAILab/EAGLE 1: the first draft layer has no input norm, nothing norms its output",
)

FAMILIES: dict[str, HeadFamily] = {
    family.name: family
    for family in (MIMO, DEEPSEEK, STEP, QWEN, MELLUM, ERNIE, SPECULATORS, EAGLE)
}


@dataclass(frozen=True, slots=True)
class HeadOverrides:
    """What the user states about a head over what its family does; None leaves it.

    ``family`` is a name in ``FAMILIES``. Raises ``BadInputError`` for any other.
    """

    family: str | None = None
    concat: Concat | None = None
    hidden_in: HiddenForm | None = None
    chain: HiddenForm | None = None
    first_embed: FirstEmbed | None = None

    def __post_init__(self) -> None:
        if self.family is not None and self.family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise BadInputError(f"--head-family {self.family}: choose one of {known}")

    @property
    def wiring(self) -> dict[str, str]:
        """The overridden wiring, without the family."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if v is not None and name != "family"}

    def apply(self, family: HeadFamily) -> HeadFamily:
        """``family`` with the overridden wiring; its name tells, so that no two are confused."""
        if not self.wiring:
            return family
        stated = ",".join(f"{name}={value}" for name, value in self.wiring.items())
        return replace(family, name=f"{family.name}[{stated}]", **self.wiring)  # type: ignore[arg-type]
