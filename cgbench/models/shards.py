"""Divide a model over the ranks, by transformers' own tensor parallel plan.

transformers' ``DistributedConfig`` puts placeholders into a model without storage. They show what
is divided, and along which dimension. The parts are then plain tensors, and the forwards are plain
products followed by one sum over the ranks. DTensors would cost the host more than the kernels cost
the device (12.9 against 7.3 ms an eager step). Packing and compiling need plain weights too.

Two weights do not follow the plan. The embedding stays whole: a lookup reads one row, and a divided
one would add a collective to every draft. The lm_head is divided by vocabulary, tied or not, but
its parts are never put together for an argmax.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from cgbench.errors import BadInputError, UnsupportedModelError
from cgbench.kernels import linear as products
from cgbench.kernels.fp8.block_scales import FP8, column_part
from cgbench.models.latent.latent_hook import is_latent_attention
from cgbench.models.quantised.scaled_modules import (
    ScaledLinear,
    scales_of,
    scaling_of,
    set_scales,
)
from cgbench.models.support import auto_class_for, class_name
from cgbench.parallel.collectives import joined_over_ranks, stacked_over_ranks, sum_over_ranks
from cgbench.parallel.ranks import Ranks

# Styles of transformers' plans whose forward is one of ours. The last three divide nothing, or
# divide only for training.
_STYLES = {
    "colwise", "rowwise", "packed_colwise", "moe_tp_experts", "colwise_gather_output",
    "embedding_rowwise", "replicated_with_grad_allreduce", "mla_kv_a_proj", "replicate",
}  # fmt: skip

LM_HEAD = "lm_head.weight"
HEAD_OUTPUT = "output.weight"
"""This is the name of a head's own output matrix. It is divided as the target's lm_head is."""


@dataclass(frozen=True, slots=True)
class Split:
    """A split is the way in which a tensor is divided over the ranks, along ``dim``.

    ``num_packed`` blocks lie one after another along that dimension. Each is divided for itself.
    """

    dim: int
    num_packed: int = 1

    def part(self, whole: Tensor, ranks: Ranks) -> Tensor:
        """Return this rank's part of ``whole``, in storage of its own."""
        blocks = whole.chunk(self.num_packed, self.dim)
        return torch.cat(
            [block.chunk(ranks.size, self.dim)[ranks.rank] for block in blocks], self.dim
        )

    def joined(self, part: Tensor) -> Tensor:
        """Return the whole tensor, made of every rank's ``part``."""
        if part.dtype == FP8:
            # Collectives do not take this type.
            return self.joined(part.view(torch.uint8)).view(FP8)
        pieces = [each.chunk(self.num_packed, self.dim) for each in stacked_over_ranks(part)]
        return torch.cat([p[i] for i in range(self.num_packed) for p in pieces], self.dim)


Splits = Mapping[str, Split]
"""``Splits`` maps parameter names to their splits. A name that is not there is whole on every
rank."""


class SummedLinear(nn.Linear):
    """A ``SummedLinear`` is a linear layer that is divided by input.

    Each rank multiplies its part, and the products are summed.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = sum_over_ranks(F.linear(x, self.weight))
        return out if self.bias is None else out + self.bias


class VocabLinear(nn.Linear):
    """A ``VocabLinear`` is an lm_head that is divided by vocabulary.

    A call returns whole logits, and ``part`` returns this rank's.
    """

    def part(self, x: Tensor) -> Tensor:
        """Return this rank's logits ``[..., V / N]`` of ``x [..., H]``."""
        return F.linear(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return joined_over_ranks(self.part(x))


class ScaledSummedLinear(ScaledLinear):
    """A ``ScaledSummedLinear`` is a ``SummedLinear`` of FP8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        out = sum_over_ranks(products.linear(x, self.weight, None, *scaling_of(self)))
        return out if self.bias is None else out + self.bias


class ScaledVocabLinear(VocabLinear):
    """A ``ScaledVocabLinear`` is a ``VocabLinear`` of FP8 weights."""

    weight_scale: Tensor
    weight_row_blocks: Tensor
    is_w8a8 = False

    def part(self, x: Tensor) -> Tensor:
        return products.linear(x, self.weight, self.bias, *scaling_of(self))


_SUMMED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: SummedLinear,
    ScaledLinear: ScaledSummedLinear,
}
_BY_VOCABULARY: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: VocabLinear,
    ScaledLinear: ScaledVocabLinear,
}


class SumOutput:
    """A ``SumOutput`` is a forward hook that sums a module's output over the ranks."""

    def __init__(self) -> None:
        self.sum: Callable[[Tensor], Tensor] = sum_over_ranks

    def __call__(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return self.sum(out)


def planned_splits(config: PretrainedConfig, num_ranks: int) -> Splits:
    """Return what ``num_ranks`` ranks share of the model of ``config``.

    Raise ``UnsupportedModelError`` if transformers has no plan for it, or a plan with a style that
    the forwards here do not have. Raise ``BadInputError`` for sizes that the ranks do not divide.
    """
    with torch.device("meta"):
        model = auto_class_for(config).from_config(_untied(config), dtype=torch.bfloat16)
    _check_plan(model)
    # The lm_head is divided here, if the vocabulary allows. transformers 5.17 refuses others.
    model.tp_plan.pop("lm_head", None)
    asked = DistributedConfig(tp_size=num_ranks)
    asked, _, mesh = model.prepare_distribute_model(asked, device_map=None)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    model = model.maybe_distribute_model(model, asked, mesh)
    splits = {
        name: _split_of(parameter)
        for name, parameter in model.named_parameters()
        if isinstance(parameter, DTensor) and not parameter.placements[0].is_replicate()
        if ".layers." in name
    }
    splits |= latent_splits(model, num_ranks)
    for name, split in splits.items():
        _check_divides(num_ranks, name, model.get_parameter(name).shape[split.dim], split)
    return splits if vocab_size % num_ranks else {**splits, LM_HEAD: Split(0)}


def _untied(config: PretrainedConfig) -> PretrainedConfig:
    """Return a copy whose output matrix is not tied, so that each placeholder is divided for
    itself."""
    copy = deepcopy(config)
    for each in (copy, copy.get_text_config()):
        each.tie_word_embeddings = False
    return copy


def _check_plan(model: PreTrainedModel) -> None:
    kind, plan = type(model).__name__, model.tp_plan
    if not plan or set(plan) <= {"lm_head"}:
        raise UnsupportedModelError(f"--tp: transformers has no tensor parallel plan for {kind}")
    if unknown := sorted(set(plan.values()) - _STYLES):
        raise UnsupportedModelError(
            f"--tp: the tensor parallel plan of {kind} has style '{unknown[0]}', which is not known"
        )


def _split_of(parameter: DTensor) -> Split:
    placement: Any = parameter.placements[0]
    return Split(placement.dim % parameter.ndim, getattr(placement, "split_factor", 1))


def _check_divides(num_ranks: int, name: str, size: int, split: Split) -> None:
    if size // split.num_packed % num_ranks:
        raise BadInputError(
            f"--tp {num_ranks}: does not divide the {size // split.num_packed} rows or columns of "
            f"{name}"
        )


def latent_splits(model: nn.Module, num_ranks: int) -> Splits:
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


def check_heads(
    config: PretrainedConfig,
    num_ranks: int,
    num_query_heads: Mapping[int, int],
    num_kv_heads: Mapping[int, int],
) -> None:
    """Check that the ranks divide the heads, because a head is never cut.

    Both mappings are by layer. Raise ``BadInputError`` if the ranks do not divide them.
    """
    plan = config.get_text_config().base_model_tp_plan or {}
    if "layers.*.self_attn.k_proj" not in plan:
        return
    for what, counts in (("attention", num_query_heads), ("key-value", num_kv_heads)):
        for count in sorted(set(counts.values())):
            if count % num_ranks:
                raise BadInputError(
                    f"--tp {num_ranks}: does not divide the {count} {what} heads of "
                    f"{class_name(config)}"
                )


def block_splits(splits: Splits, module: nn.Module) -> Splits:
    """Return the ``splits`` of a head's ``block``, taken from the target's layers.

    The block is of the same class as they are.
    """
    of_layer = {name.partition(".layers.")[2].partition(".")[2]: s for name, s in splits.items()}
    names = (name for name, _ in module.named_parameters())
    return {
        name: of_layer[suffix]
        for name in names
        if (suffix := name.removeprefix("block.")) != name and suffix in of_layer
    }


def divide(module: nn.Module, splits: Splits, ranks: Ranks) -> None:
    """Keep this rank's part of every parameter in ``splits``, and make the forwards sum up.

    A parameter that is a part already, as a DTensor, becomes a plain one.
    """
    for name, split in splits.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        _divide_scales(owner, leaf, split, ranks)
        owner._parameters[leaf] = _as_parameter(_part(owner._parameters[leaf], split, ranks))
    install_forwards(module, splits)


def _divide_scales(owner: nn.Module, leaf: str, split: Split, ranks: Ranks) -> None:
    """Keep the scales of this rank's part of an FP8 weight, ahead of the weight's own division.

    A part of the rows reads the same scales by fewer rows. A part of the columns that cuts a block
    keeps that block's scale, as the other rank does.
    """
    scales, weight = scales_of(owner, leaf), owner._parameters[leaf]
    if scales is None or weight is None:
        return
    scale, row_blocks = scales
    if split.dim % weight.dim() == weight.dim() - 2:
        rows = Split(0, split.num_packed).part(row_blocks, ranks)
        set_scales(owner, leaf, scale, rows.contiguous())
        return
    assert split.num_packed == 1
    size = weight.shape[-1] // ranks.size
    part = column_part(scale, weight.shape[-1], ranks.rank * size, size)
    set_scales(owner, leaf, part, row_blocks, whole=scale)


def _part(parameter: Tensor | None, split: Split, ranks: Ranks) -> Tensor:
    assert parameter is not None
    if isinstance(parameter, DTensor) and not parameter.placements[0].is_replicate():
        return parameter.to_local()
    parameter = _whole(parameter)
    return split.part(parameter.detach(), ranks)


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def install_forwards(module: nn.Module, splits: Splits) -> None:
    """Make the modules that hold a part of a sum add it up over the ranks.

    A weight that is divided by rows needs nothing. A weight that is divided by columns is summed.
    For experts the whole module's output is summed at once.
    """
    for name, split in splits.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        if leaf == "down_proj":
            owner.register_forward_hook(SumOutput())
        elif leaf == "weight" and split.dim == 1:
            owner.__class__ = _SUMMED[type(owner)]


def divide_lm_head(model: PreTrainedModel, ranks: Ranks) -> None:
    """Divide the lm_head by vocabulary.

    A tied one gets a part of its own beside the embedding.
    """
    divide_vocabulary(model.get_output_embeddings(), ranks)


def divide_vocabulary(output: nn.Module, ranks: Ranks) -> None:
    """Divide an output matrix by vocabulary, in place."""
    assert isinstance(output, nn.Linear)
    _divide_scales(output, "weight", Split(0), ranks)
    output.weight = _as_parameter(Split(0).part(output.weight.detach(), ranks))
    if output.bias is not None:
        output.bias = _as_parameter(Split(0).part(output.bias.detach(), ranks))
    module: nn.Module = output
    module.__class__ = _BY_VOCABULARY[type(output)]


def without_dtensors(model: PreTrainedModel, splits: Splits) -> None:
    """Undo what transformers' loading leaves besides the parts.

    That is its forwards, and DTensors of weights that stay whole here.
    """
    for module in model.modules():
        module.__dict__.pop("forward", None)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, parameter in list(model.named_parameters()):
        if (isinstance(parameter, DTensor) and name not in splits) or name == LM_HEAD:
            owner_name, _, leaf = name.rpartition(".")
            owner = model.get_submodule(owner_name)
            owner._parameters[leaf] = _as_parameter(_whole(parameter))
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    if hasattr(model.config, "distributed_config"):
        del model.config.distributed_config


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
