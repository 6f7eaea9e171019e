"""Keep a rank's part of every divided weight, and make the forwards add up over the ranks.

The parts are plain tensors, and the forwards are plain products followed by one sum over the ranks.
DTensors would cost the host more than the kernels cost the device (12.9 against 7.3 ms an eager
step). Packing and compiling need plain weights too.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cgbench.kernels import linear as products
from cgbench.kernels.fp8.block_scales import column_part
from cgbench.models.division.splits import LM_HEAD, Split, Splits, is_gated_attention, split_of
from cgbench.models.quantised.scaled_modules import (
    ScaledLinear,
    scales_of,
    scaling_of,
    set_scales,
)
from cgbench.parallel.collectives import joined_over_ranks, sum_over_ranks
from cgbench.parallel.ranks import Ranks


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


def divide(module: nn.Module, splits: Splits, ranks: Ranks, read: Collection[str] = ()) -> None:
    """Keep this rank's part of every parameter in ``splits``, and make the forwards sum up.

    A parameter that is a part already, as a DTensor, becomes a plain one. Those of ``read`` are,
    whatever their DTensors state of the whole.
    """
    for name, split in splits.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        _divide_scales(owner, leaf, split, ranks)
        held = owner._parameters[leaf]
        is_part = name in read and isinstance(held, DTensor)
        part = held.to_local() if is_part else _part(held, split, ranks)  # type: ignore[union-attr]
        owner._parameters[leaf] = _as_parameter(part)
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
        rows = replace(split, dim=0).part(row_blocks, ranks)
        set_scales(owner, leaf, scale, rows.contiguous())
        return
    assert split.blocks == (1,)
    size = weight.shape[-1] // ranks.size
    part = column_part(scale, weight.shape[-1], ranks.rank * size, size)
    set_scales(owner, leaf, part, row_blocks, whole=scale)


def _part(parameter: Tensor | None, split: Split, ranks: Ranks) -> Tensor:
    assert parameter is not None
    if isinstance(parameter, DTensor) and split_of(parameter) == split:
        return parameter.to_local()
    # transformers reads a gated delta net, or copies of key-value heads, in other parts.
    return split.part(_whole(parameter).detach(), ranks)


def _as_parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def install_forwards(module: nn.Module, splits: Splits) -> None:
    """Make the modules that hold a part of a sum add it up over the ranks.

    A weight that is divided by rows needs nothing. A weight that is divided by columns is summed.
    For experts the whole module's output is summed at once. Layers that count their heads are told
    how many they have left.
    """
    for name, split in splits.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        if leaf == "A_log":
            _count_own_heads(owner)
        elif name.endswith("q_proj.weight") and split.dim == 0:
            _count_own_queries(module.get_submodule(owner_name.rpartition(".")[0]))
        elif split.num_copies > 1 and name.endswith("k_proj.weight"):
            _serve_fewer_queries(module.get_submodule(owner_name.rpartition(".")[0]), split)
        elif leaf == "down_proj":
            owner.register_forward_hook(SumOutput())
        elif leaf == "weight" and split.dim == 1:
            owner.__class__ = _SUMMED[type(owner)]


def _count_own_heads(net: Any) -> None:
    """Set a gated delta net's sizes to those of the heads that it holds.

    Each value head has one number in ``A_log``.
    """
    num_ranks = net.num_v_heads // len(net.A_log)
    for size in ("num_k_heads", "num_v_heads", "key_dim", "value_dim", "conv_dim"):
        setattr(net, size, getattr(net, size) // num_ranks)


def _count_own_queries(attention: Any) -> None:
    """Set how many heads gated attention has, which it multiplies by their gates, to a rank's."""
    if is_gated_attention(attention):
        attention.num_heads = len(attention.q_proj.weight) // attention.head_dim


def _serve_fewer_queries(attention: Any, split: Split) -> None:
    """Set how many of a rank's queries a key-value head serves that several ranks hold.

    transformers' own attention repeats keys and values by it, where a model has it.
    """
    if hasattr(attention, "num_key_value_groups"):
        attention.num_key_value_groups //= split.num_copies


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
