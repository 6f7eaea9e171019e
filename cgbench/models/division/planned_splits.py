"""Plan what the ranks share of a model: transformers' own tensor parallel plan, and whole heads.

transformers' ``DistributedConfig`` puts placeholders into a model without storage. They show what
is divided, and along which dimension.

These weights do not follow the plan. The embedding stays whole: a lookup reads one row, and a
divided one would add a collective to every draft. The lm_head is divided by vocabulary, tied or
not, but its parts are never put together for an argmax. Latent attention and gated delta nets are
divided by heads, and transformers gathers them. So is attention with a gate a head, as Step's, and
its plain MLPs are divided too. Key-value heads fewer than the ranks are copied.
"""

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from cgbench.errors import BadInputError, UnsupportedModelError
from cgbench.models.division.splits import (
    LM_HEAD,
    Split,
    Splits,
    is_gated_attention,
    kv_copies,
    plain_split,
    split_of,
)
from cgbench.models.latent.latent_hook import is_latent_attention
from cgbench.models.recurrent_hook import delta_nets
from cgbench.models.support import auto_class_for, class_name

# Styles of transformers' plans whose forward is one of ours. The last four divide nothing, or
# divide only for training.
_STYLES = {
    "colwise", "rowwise", "packed_colwise", "moe_tp_experts", "colwise_gather_output",
    "embedding_rowwise", "replicated_with_grad_allreduce", "mla_kv_a_proj", "replicate",
    "local_params",
}  # fmt: skip
# This one puts all heads together on every rank. Gated attention does not need that.
_GATHERED = "rowwise_split_input"


def planned_splits(
    config: PretrainedConfig, num_ranks: int, num_kv_heads: Mapping[int, int]
) -> Splits:
    """Return what ``num_ranks`` ranks share of the model of ``config``.

    ``num_kv_heads`` are by layer, as ``check_heads`` has let them pass. Raise
    ``UnsupportedModelError`` if transformers has no plan for the model, or a plan with a style that
    the forwards here do not have. Raise ``BadInputError`` for sizes that the ranks do not divide.
    """
    with torch.device("meta"):
        model = auto_class_for(config).from_config(_untied(config), dtype=torch.bfloat16)
    check_plan(model)
    own = latent_splits(model, num_ranks) | delta_net_splits(model, num_ranks) | gated_splits(model)
    # The lm_head is divided here, if the vocabulary allows. transformers 5.17 refuses others.
    model.tp_plan.pop("lm_head", None)
    asked = DistributedConfig(tp_size=num_ranks)
    asked, _, mesh = model.prepare_distribute_model(asked, device_map=None)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    model = model.maybe_distribute_model(model, asked, mesh)
    splits = {
        name: split
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) and (split := split_of(parameter)) is not None
        if ".layers." in name
    }
    for layer, count in num_kv_heads.items():
        splits |= _copied(splits, f".layers.{layer}.", kv_copies(count, num_ranks))
    splits |= own
    for name, split in splits.items():
        _check_divides(num_ranks, name, model.get_parameter(name).shape[split.dim], split)
    return splits if vocab_size % num_ranks else {**splits, LM_HEAD: Split(0)}


def _copied(splits: Splits, layer: str, num_copies: int) -> dict[str, Split]:
    """Return the splits of the keys' and values' weights of ``layer``, with that many copies."""
    return {
        name: replace(split, num_copies=num_copies)
        for name, split in splits.items()
        if layer in name and name.split(".")[-2] in ("k_proj", "v_proj")
    }


def _untied(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy whose output matrix is not tied, so that each placeholder is divided for
    itself."""
    copy = deepcopy(config)
    for each in (copy, copy.get_text_config()):
        each.tie_word_embeddings = False
    return copy


def check_plan(model: PreTrainedModel) -> None:
    """Check that transformers has a tensor parallel plan for ``model`` of known styles.

    Raise ``UnsupportedModelError`` if it has not.
    """
    kind, plan = type(model).__name__, model.tp_plan
    if not plan or set(plan) <= {"lm_head"}:
        raise UnsupportedModelError(f"--tp: transformers has no tensor parallel plan for {kind}")
    known = _STYLES | ({_GATHERED} if _gated_layers(model) else set())
    if unknown := sorted(set(plan.values()) - known):
        raise UnsupportedModelError(
            f"--tp: the tensor parallel plan of {kind} has style '{unknown[0]}', which is not known"
        )


def _check_divides(num_ranks: int, name: str, size: int, split: Split) -> None:
    for block in split.block_sizes(size):
        if block % split.num_parts(num_ranks):
            raise BadInputError(
                f"--tp {num_ranks}: does not divide the {block} rows or columns of {name}"
            )


def latent_splits(model: nn.Module, num_ranks: int) -> dict[str, Split]:
    """Return how ``num_ranks`` ranks share the heads of latent attention in ``model``.

    transformers' plan leaves them whole in some models, as in DeepSeek-V3. What makes latents stays
    whole. Raise ``BadInputError`` if the ranks do not divide the heads.
    """
    splits: dict[str, Split] = {}
    for name, module in model.named_modules():
        if not is_latent_attention(module):
            continue
        attention: Any = module
        if attention.num_heads % num_ranks:
            raise BadInputError(
                f"--tp {num_ranks}: does not divide the {attention.num_heads} attention heads of "
                f"{type(model).__name__}"
            )
        own = {leaf for leaf, part in module.named_children() if part is not None}
        query = "q_b_proj" if "q_b_proj" in own else "q_proj"
        splits |= {f"{name}.{leaf}.weight": Split(0) for leaf in (query, "kv_b_proj")}
        splits[f"{name}.o_proj.weight"] = Split(1)
    return splits


def delta_net_splits(model: nn.Module, num_ranks: int) -> dict[str, Split]:
    """Return how ``num_ranks`` ranks share the heads of gated delta nets in ``model``.

    A key head stays with its group of value heads. Their rows of the input projections are divided,
    their channels of the convolution, their decays and time steps, and their columns of the output
    projection. Raise ``BadInputError`` if the ranks do not divide the heads.
    """
    splits: dict[str, Split] = {}
    for name, net in delta_nets(model):
        for what, count in (("key", net.num_k_heads), ("value", net.num_v_heads)):
            if count % num_ranks:
                raise BadInputError(
                    f"--tp {num_ranks}: does not divide the {count} {what} heads of the "
                    f"linear-attention layers of {type(model).__name__}"
                )
        # Queries, keys and values lie one after another. Other rows lie head after head.
        channels = Split(0, (net.key_dim, net.key_dim, net.value_dim))
        own = {f"{name}.{leaf}": Split(0) for leaf, _ in net.named_parameters()}
        own |= {each: channels for each in own if each.split(".")[-2] in ("in_proj_qkv", "conv1d")}
        own[f"{name}.out_proj.weight"] = Split(1)
        # One norm serves the values of every head.
        splits |= {each: split for each, split in own.items() if f"{name}.norm." not in each}
    return splits


def gated_splits(model: nn.Module) -> dict[str, Split]:
    """Return how ranks share the plain MLPs of a ``model`` whose attention has gates, as Step's.

    They are those of dense layers and the shared experts. transformers' plan leaves them whole.
    """
    splits: dict[str, Split] = {}
    for layer in _gated_layers(model):
        mlp = model.get_submodule(f"{layer}.mlp")
        splits |= {
            f"{layer}.mlp.{name}": split
            for name, _ in mlp.named_parameters()
            if (split := plain_split(name)) is not None
        }
    return splits


def stacked_gates(model: nn.Module) -> set[str]:
    """Return the names of the experts' weights of ``model`` whose gate and up are stored apart.

    Step stores each of all experts together. transformers (5.17 to 5.24) cuts both as if they were
    gate and up already, and reads other rows than the columns of the product after them. So it is
    given ``reading_plan``.
    """
    names = {f"{layer}.mlp.experts.gate_up_proj" for layer in _gated_layers(model)}
    return names & {name for name, _ in model.named_parameters()}


def reading_plan(model: PreTrainedModel, names: Collection[str]) -> dict[str, str] | None:
    """Return the plan by which transformers reads a rank's rows of each tensor of ``names``.

    ``names`` are those of ``stacked_gates``. The rows of gate and of up are joined after that. It
    is None for the plan that ``model`` has, if there are none. It is a whole plan, because 5.17
    takes one in place of the model's, and 5.23 adds it.
    """
    own = {re.sub(r"\.\d+\.", ".*.", name): "colwise" for name in names}
    return {**model.tp_plan, **own} if own else None


def _gated_layers(model: nn.Module) -> list[str]:
    """Return the names of the decoder layers whose heads transformers puts together, and need not.

    Each head has its own gate and norms, so it is computed without the others.
    """
    plan: Any = getattr(model, "tp_plan", None) or {}
    if _GATHERED not in plan.values():
        return []
    parts = ((name, part) for name, part in model.named_modules() if is_gated_attention(part))
    return [name.rpartition(".")[0] for name, _ in parts]


def check_heads(
    config: PretrainedConfig,
    num_ranks: int,
    num_query_heads: Mapping[int, int],
    num_kv_heads: Mapping[int, int],
) -> None:
    """Check that the ranks divide the heads, because a head is never cut.

    Key-value heads may be fewer than the ranks, if they divide the ranks. Both mappings are by
    layer. Raise ``BadInputError`` if the heads cannot be divided.
    """
    plan = config.get_text_config().base_model_tp_plan or {}
    if "layers.*.self_attn.k_proj" not in plan:
        return
    kind = class_name(config)
    for count in sorted(set(num_query_heads.values())):
        if count % num_ranks:
            raise BadInputError(
                f"--tp {num_ranks}: does not divide the {count} attention heads of {kind}"
            )
    for count in sorted(set(num_kv_heads.values())):
        if count % num_ranks and num_ranks % count:
            raise BadInputError(
                f"--tp {num_ranks}: does not divide the {count} key-value heads of {kind}, nor "
                "they it"
            )


def block_splits(splits: Splits, module: nn.Module, num_copies: int) -> Splits:
    """Return the ``splits`` of a head's ``block``, taken from the target's layers.

    The block is of the same class as they are. ``num_copies`` ranks hold each of its key-value
    heads.
    """
    of_layer = {name.partition(".layers.")[2].partition(".")[2]: s for name, s in splits.items()}
    names = (name for name, _ in module.named_parameters())
    own = {
        name: of_layer[suffix]
        for name in names
        if (suffix := name.removeprefix("block.")) != name and suffix in of_layer
    }
    return own | _copied(own, "block.", num_copies)
