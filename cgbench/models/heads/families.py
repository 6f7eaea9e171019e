"""Define draft head families as data: where a checkpoint keeps its MTP head, and its wiring.

A mistake in this table never changes the output of lossless decoding. It only lowers acceptance. So
the differences between families are data here, the disputed points can be overridden, and
acceptance is reported per position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from cgbench.request.choices import (
    ConcatOrder,
    FirstEmbedding,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
)


@dataclass(frozen=True, slots=True)
class HeadFamily:
    """A head family is the layout that some checkpoints share, and the wiring of their heads.

    ``names`` maps each module of ``DraftHead`` to its name in the checkpoint. ``{i}`` is the
    module's number. It counts on from the target's last layer if ``counts_on``, and from 0
    otherwise. ``source`` names the rule's origin. ``model_types`` are the types in config.json that
    the layout ships with. It is None if its heads are made apart from any target. A layout is
    chosen by its names and its type together, because Qwen's names mean one thing in Qwen3.5 and
    another in EXAONE.

    ``concat`` is the order of the projection's input, E the token embedding and H the hidden state.
    ``hidden_in`` is the hidden state fed at draft 1, the target's before or after its final norm.
    ``chain`` is the one fed at drafts 2..k, the head's before or after its output norm.
    ``out_norm`` is the norm before the output matrix: the head's own, the target's final one, or
    none. ``input_norms``: E and H are normed before the projection. ``block_norm``: the block norms
    its input. ``norm_form``: stored norm weights scale as the target's modules do, by w (plain), or
    by 1 + w. ``first_embed``: whether the embedding fed at position 0 is zeroed.
    ``feed``: what each module past the first reads beside its token, the chain of the module before
    it or the target's hidden state. Steps past the last module read the chain.
    ``block_attention``: the block attends as the target's full layers do, as its sliding ones, or
    as its first layer, unless config.json states it. ``dropped`` is an infix that some of the
    checkpoint's names carry. ``renamed`` are names within the block that differ from the target's
    layers. ``unread`` are tensors of the module that engines leave in the file.
    ``has_one_module``: a second block would be a second layer of the same module. ``num_aux``:
    draft 1 is fed the inputs of so many of the target's layers, in place of its last state.
    ``is_parallel``: one forward makes every draft, from states of layers that config.json names.
    ``kind`` is what messages call such a head.
    """

    name: str
    names: Mapping[str, str]
    source: str
    model_types: frozenset[str] | None = None
    concat: ConcatOrder = ConcatOrder.EH
    hidden_in: NormSide = NormSide.POST
    chain: NormSide = NormSide.POST
    out_norm: OutputNorm = OutputNorm.OWN
    input_norms: bool = True
    block_norm: bool = True
    norm_form: NormForm = NormForm.TARGET
    first_embed: FirstEmbedding = FirstEmbedding.KEPT
    feed: ModuleFeed = ModuleFeed.CHAIN
    block_attention: Literal["full", "first", "sliding"] = "full"
    counts_on: bool = False
    dropped: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    has_one_module: bool = False
    num_aux: int = 0
    is_parallel: bool = False
    kind: str = "MTP head"

    @property
    def reads_aux(self) -> bool:
        """Return whether the head is fed the inputs of the target's layers, not its last state."""
        return self.is_parallel or self.num_aux > 0

    def first_number(self, num_layers: int) -> int:
        """Return the number that a checkpoint gives the head's first module.

        ``num_layers`` is that of the target.
        """
        return num_layers if self.counts_on else 0

    def prefixes(self, number: int) -> dict[str, str]:
        """Return the prefix of each module in the checkpoint: ``names`` for module ``number``."""
        return {ours: theirs.format(i=number) for ours, theirs in self.names.items()}

    def under(self, prefix: str) -> "HeadFamily":
        """Return the same layout for a checkpoint whose model begins with ``prefix`` and not
        ``model.``."""
        moved = {
            ours: prefix + theirs.removeprefix("model.") for ours, theirs in self.names.items()
        }
        return replace(self, names=moved)

    def own_names(self, num_layers: int) -> list[str]:
        """Return the names of the tensors that only this layout has.

        Those are the tensors outside the block, the projection first.
        """
        prefixes = self.prefixes(self.first_number(num_layers))
        own = ["proj", *(name for name in prefixes if name not in ("proj", "block"))]
        return [f"{prefixes[name]}.weight" for name in own]

    def tensor_name(self, module_name: str, number: int = 0) -> str:
        """Return the checkpoint's name of a ``DraftHead`` tensor.

        ``module_name`` is ours, such as ``block.mlp.up_proj.weight``.
        """
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

_HY_NAMES = _DEEPSEEK_NAMES | {"out_norm": "model.layers.{i}.final_layernorm"}

MIMO = HeadFamily(
    name="mimo",
    names=_MIMO_NAMES,
    model_types=frozenset({"mimo"}),
    concat=ConcatOrder.HE,
    first_embed=FirstEmbedding.ZEROED,
    source="XiaomiMiMo/MiMo-7B checkpoints. vLLM 0.33.0 and SGLang 0.5.23 feed and chain the "
    "state after the norm",
)
MIMO_V2 = HeadFamily(
    name="mimo_v2",
    names={
        "embed_norm": "model.mtp.layers.{i}.enorm",
        "hidden_norm": "model.mtp.layers.{i}.hnorm",
        "proj": "model.mtp.layers.{i}.eh_proj",
        "block": "model.mtp.layers.{i}",
        "out_norm": "model.mtp.layers.{i}.final_layernorm",
    },
    model_types=frozenset({"mimo_v2_flash"}),
    feed=ModuleFeed.TARGET,
    block_attention="sliding",
    renamed={"pre_mlp_layernorm": "post_attention_layernorm"},
    source="XiaomiMiMo/MiMo-V2-Flash checkpoint, SGLang's mimo_v2_flash_nextn feeds the target's "
    "state after the norm to every module",
)
DEEPSEEK = HeadFamily(
    name="deepseek",
    names=_DEEPSEEK_NAMES,
    model_types=frozenset(
        {
            *("deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite", "glm4v_moe"),
            *("glm4v_moe_text", "glm_moe_dsa", "glm_ocr", "glm_ocr_text"),
        }
    ),
    first_embed=FirstEmbedding.ZEROED,
    counts_on=True,
    source="deepseek-ai/DeepSeek-V3 README_WEIGHTS, zai-org/GLM-4.5. vLLM 0.33.0 chains after the "
    "norm and zeroes the embedding at position 0, transformers' MtpModel keeps it",
)
HY = HeadFamily(
    name="hy",
    names=_HY_NAMES,
    model_types=frozenset({"hy_v3"}),
    first_embed=FirstEmbedding.ZEROED,
    counts_on=True,
    unread=("embed_tokens.weight", "shared_head.weight", "shared_head.head.weight"),
    source="tencent/Hy3 checkpoints, vLLM's hy_v3_mtp, which reads the target's lm_head alone",
)
STEP = HeadFamily(
    name="step",
    names=_DEEPSEEK_NAMES,
    model_types=frozenset({"step3p5", "step3p7"}),
    hidden_in=NormSide.PRE,
    chain=NormSide.PRE,
    norm_form=NormForm.ONE_PLUS,
    counts_on=True,
    dropped="transformer.",
    source="stepfun-ai/Step-3.5 checkpoints, vLLM's step3p5_mtp",
)
QWEN = HeadFamily(
    name="qwen",
    names=_QWEN_NAMES,
    model_types=frozenset(
        {"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}
    ),
    norm_form=NormForm.ONE_PLUS,
    source="Qwen/Qwen3-Next and Qwen3.5 checkpoints, vLLM's qwen3_next_mtp",
)
EXAONE = HeadFamily(
    name="exaone",
    names=_QWEN_NAMES,
    model_types=frozenset({"exaone4_5", "exaone4_5_text", "exaone4", "exaone_moe"}),
    norm_form=NormForm.PLAIN,
    block_attention="first",
    source="LGAI-EXAONE/EXAONE-4.5 and K-EXAONE: Qwen's names, plain norms, vLLM's exaone4_5_mtp "
    "and exaone_moe_mtp",
)
MELLUM = HeadFamily(
    name="mellum",
    names=_QWEN_NAMES,
    model_types=frozenset({"mellum"}),
    norm_form=NormForm.PLAIN,
    source="JetBrains' Mellum in transformers: Qwen's names, plain norms",
)
ERNIE = HeadFamily(
    name="ernie",
    names={
        "embed_norm": "model.mtp_emb_norm.{i}",
        "hidden_norm": "model.mtp_hidden_norm.{i}",
        "proj": "model.mtp_linear_proj.{i}",
        "block": "model.mtp_block.{i}",
    },
    model_types=frozenset({"ernie4_5_moe"}),
    hidden_in=NormSide.PRE,
    chain=NormSide.PRE,
    out_norm=OutputNorm.TARGET,
    first_embed=FirstEmbedding.ZEROED,
    source="baidu/ERNIE-4.5-21B-A3B-PT checkpoint, FastDeploy's ernie4_5_mtp, vLLM and SGLang: "
    "--head-hidden post --chain-norm post --head-out-norm none",
)
SPECULATORS = HeadFamily(
    name="speculators",
    names={ours: theirs.removeprefix("model.") for ours, theirs in _MIMO_NAMES.items()},
    source="vllm-project/speculators 0.9, MTPDraftModel",
)
EAGLE = HeadFamily(
    name="eagle",
    names={"proj": "fc", "block": "layers.{i}"},
    has_one_module=True,
    out_norm=OutputNorm.NONE,
    input_norms=False,
    block_norm=False,
    source="SafeAILab/EAGLE 1: the first draft layer has no input norm, nothing norms its output",
)
EAGLE3 = HeadFamily(
    name="eagle3",
    names={"proj": "fc", "block": "midlayer", "out_norm": "norm"},
    has_one_module=True,
    chain=NormSide.PRE,
    input_norms=False,
    norm_form=NormForm.PLAIN,
    num_aux=3,
    kind="EAGLE-3 head",
    source="SafeAILab/EAGLE 3 and vLLM's llama_eagle3: fc over three states of the target, and the "
    "layer's output fed back before its norm",
)

DFLASH = HeadFamily(
    name="dflash",
    names={"proj": "fc", "hidden_norm": "hidden_norm", "block": "layers", "out_norm": "norm"},
    has_one_module=True,
    input_norms=False,
    norm_form=NormForm.PLAIN,
    is_parallel=True,
    kind="DFlash drafter",
    source="z-lab's DFlash (arXiv:2602.06036) and its checkpoints: fc over states of the target, "
    "which give keys and values, and one forward of the newest token and k masks",
)

FAMILIES: dict[str, HeadFamily] = {
    family.name: family
    for family in (
        *(MIMO, MIMO_V2, DEEPSEEK, HY, STEP, QWEN, EXAONE, MELLUM, ERNIE),
        *(SPECULATORS, EAGLE, EAGLE3, DFLASH),
    )
}
