"""Find what a forward must read and multiply, from a model without weights.

That is weights, embeddings, attention and recurrent state. One token is run through the modules on
the meta device. Every matrix product with a stored weight is noted, whatever module or function
makes it. So no formula of a family is written down twice. Experts, latent attention and shared
experts are counted as the model's own code uses them. Products that an engine fuses (q, k and v, or
gate and up) stay apart here, because they read the same bytes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.fp8.block_scales import FP8
from cgbench.kernels.gdn.delta_net import StateShape
from cgbench.kernels.mla.latent_attention import LatentInput
from cgbench.models.attention_hook import ShapeProbe
from cgbench.models.division.splits import Splits
from cgbench.models.heads.head import MtpModule
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.loader import LoadedModel
from cgbench.models.quantised.kv_format import PLAIN, SCALE_BYTES, KvFormat
from cgbench.models.skeleton import Skeleton, stored_bytes
from cgbench.models.target import HiddenStates, Target

# As torch's dispatcher and transformers' fallback for grouped_mm name them.
_PRODUCTS = frozenset(
    {
        *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_grouped_mm"),
        *("aten::linear", "aten::matmul", "transformers::grouped_mm_fallback"),
    }
)
_EMBEDDING = "aten::embedding"
OWN_OUTPUT = "output"
"""This is the name of a head's own output matrix, in the account too."""
# A cast weight counts as the same weight, because routers cast theirs to multiply in float32.
_CAST = "aten::_to_copy"


@dataclass(frozen=True, slots=True)
class Product:
    """A product is one matrix product with a stored weight.

    The weight has ``num_experts`` matrices of ``num_elements`` each. ``num_rows`` is the rows that
    one token brings to it. It is 1 for a dense layer, and the chosen experts for a mixture.
    """

    name: str
    num_elements: int
    num_experts: int
    num_rows: int
    stored_bytes: float | None = None
    """One matrix takes this many bytes as it is held, its scales included.

    None if it is of the model's dtype.
    """
    weight: str = field(default="", compare=False)
    """The weight's name with its layer. Products of equal layers are equal all the same."""
    is_fp8: bool = False
    context_rows: int = 0
    """The rows that one token brings beside ``num_rows``, of a parallel drafter's context."""

    def bytes_read(self, itemsize: int) -> float:
        """Return the bytes of one matrix. ``itemsize`` is of the model's dtype."""
        return self.num_elements * itemsize if self.stored_bytes is None else self.stored_bytes

    def part(self, num_parts: int) -> "Product":
        """Return one of ``num_parts`` parts of the weight.

        Scales are divided too, because a block that two ranks share is a thousandth of a part.
        """
        stored = self.stored_bytes
        return replace(
            self,
            num_elements=self.num_elements // num_parts,
            stored_bytes=None if stored is None else stored / num_parts,
        )


class _Stored(NamedTuple):
    """A weight that is not of the model's dtype takes ``num_bytes``, its scales included."""

    num_bytes: int
    is_fp8: bool


StoredWeights = Mapping[int, _Stored]
"""By the weights' storage."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """An attention shape is the size of one layer's attention.

    ``window`` is None if all keys are seen. ``is_latent`` means that the value is a part of the
    only key.
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None
    is_latent: bool = False
    kv_itemsize: int | None = None
    """The bytes of one KV value as it is kept, or None if it is of the model's dtype."""
    scale_bytes: int = 0
    """The bytes of the scales of one head's key and value of one token."""

    @property
    def row_elements(self) -> int:
        """Return how many KV values are read of one token."""
        return self.kv_heads * (self.key_dim + (0 if self.is_latent else self.value_dim))

    def row_bytes(self, itemsize: int) -> int:
        """Return the bytes of KV that are read of one token, scales included.

        ``itemsize`` is of the model's dtype.
        """
        values = self.row_elements * (self.kv_itemsize or itemsize)
        return values + self.kv_heads * self.scale_bytes


@dataclass(frozen=True, slots=True)
class ForwardWork:
    """A forward work is what one forward reads and multiplies for one token.

    ``states`` are those of its linear-attention layers. ``embedding_elements`` counts the numbers
    in the embedding rows that the token reads.
    """

    products: tuple[Product, ...] = ()
    attentions: tuple[AttentionShape, ...] = ()
    states: tuple[StateShape, ...] = ()
    embedding_elements: int = 0


@dataclass(frozen=True, slots=True)
class ModuleWork:
    """A module work is the work of one of the head's modules, its token's embedding included.

    ``output`` is the product that makes a draft's logits. ``first`` is the work of draft 1's
    forward if that of later ones is less. An EAGLE-3 head projects three hidden states there. That
    of a parallel drafter is of one position of its block and one row of its context.
    """

    forward: ForwardWork
    output: ForwardWork
    first: ForwardWork | None = None


@dataclass(frozen=True, slots=True)
class ModelWork:
    """A model work is the work of the forwards of an iteration. ``modules`` are the head's."""

    target: ForwardWork
    lm_head: ForwardWork
    modules: tuple[ModuleWork, ...] = ()
    is_parallel: bool = False
    """Whether one forward makes every draft."""

    def module_of(self, step: int) -> ModuleWork:
        """Return the work of the module that makes draft ``step``, which counts from 1."""
        module = self.modules[min(step, len(self.modules)) - 1]
        return module if step > 1 or module.first is None else replace(module, forward=module.first)


def rank_work(model: LoadedModel) -> ModelWork:
    """Return the work of one token on each of the ranks that share ``model``.

    Divided weights and heads count by their part. Key-value heads that several ranks hold count on
    each of them. What the ranks exchange is left out.
    """
    work = model_work(model.skeleton, model.kv_format)
    num_ranks = model.ranks.size
    if num_ranks == 1:
        return work
    target = model.target
    heads = _num_parts(model, range(target.num_layers))
    own = _part(work.target, target.splits, num_ranks, heads)
    lm_head = _part(work.lm_head, target.splits, num_ranks, 1)
    modules = () if model.head is None else model.head.mtp_modules
    return replace(
        work,
        target=replace(own, states=tuple(model.state_shapes.values())),
        lm_head=lm_head,
        modules=tuple(
            _module_part(model, module, each, lm_head)
            for each, module in zip(work.modules, modules, strict=True)
        ),
    )


def _module_part(
    model: LoadedModel, module: MtpModule, work: ModuleWork, lm_head: ForwardWork
) -> ModuleWork:
    """Return a rank's part of the ``work`` of one of the head's modules.

    ``lm_head`` is its part of the target's.
    """
    num_ranks, heads = model.ranks.size, _num_parts(model, [module.layer_idx])

    def of(forward: ForwardWork) -> ForwardWork:
        return _part(forward, module.splits, num_ranks, heads)

    has_own = module.output is not None
    return ModuleWork(
        forward=of(work.forward),
        output=_part(work.output, module.splits, num_ranks, 1) if has_own else lm_head,
        first=None if work.first is None else of(work.first),
    )


def _num_parts(model: LoadedModel, layers: Iterable[int]) -> int:
    """Return into how many parts the attention heads of ``layers`` are divided.

    All of these layers that have attention are divided alike.
    """
    whole, own = model.skeleton.kv.num_query_heads, model.num_query_heads
    (count,) = {whole[layer] // own[layer] for layer in layers if layer in whole} or {1}
    return count


def _part(work: ForwardWork, splits: Splits, num_ranks: int, num_head_parts: int) -> ForwardWork:
    parts = {_in_layer(name): split.num_parts(num_ranks) for name, split in splits.items()}
    return replace(
        work,
        products=tuple(each.part(parts.get(each.weight, 1)) for each in work.products),
        attentions=tuple(
            replace(
                each,
                query_heads=each.query_heads // num_head_parts,
                # Of heads fewer than the ranks each rank has one. Latents are whole on every rank.
                kv_heads=max(1, each.kv_heads // num_head_parts),
            )
            for each in work.attentions
        ),
    )


class _WorkProbe(ShapeProbe):
    """This probe notes the shape of each attention."""

    def __init__(self, *, keeps_latents: bool, kv_format: KvFormat) -> None:
        super().__init__(keeps_latents=keeps_latents)
        self.attentions: list[AttentionShape] = []
        self._kv_format = kv_format

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        _, num_heads, _, key_dim = qkv.query.shape
        _, kv_heads, _, value_dim = qkv.value.shape
        self.attentions.append(
            AttentionShape(
                num_heads,
                kv_heads,
                key_dim,
                value_dim,
                qkv.sliding_window,
                kv_itemsize=FP8.itemsize if self._kv_format.is_fp8 else None,
                scale_bytes=SCALE_BYTES if self._kv_format.has_row_scales(layer_idx) else 0,
            )
        )
        return super().attend(layer_idx, qkv)

    def attend_latent(self, layer_idx: int, new: LatentInput) -> Tensor:
        weights = new.weights
        self.attentions.append(
            AttentionShape(
                query_heads=new.query.shape[1],
                kv_heads=1,
                key_dim=new.latent.shape[3],
                value_dim=weights.rank,
                window=new.sliding_window,
                is_latent=True,
            )
        )
        # W_UK and W_UV are one weight, and multiply as often absorbed as in expanding a token.
        F.linear(new.latent[..., : weights.rank], weights.weight)
        return super().attend_latent(layer_idx, new)


class _Recorder(TorchDispatchMode):
    """A recorder notes every product with one of the named weights, and every lookup in one."""

    def __init__(self, names: dict[int, str], stored: StoredWeights) -> None:
        """Take names by a weight's storage, and the weights that are not of the model's dtype."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = dict(names)
        self._stored = dict(stored)
        self._kept: list[Tensor] = []
        self.products: list[Product] = []
        self.embedding_elements = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        weight = next((arg for arg in args if self._is_weight(arg)), None)
        if weight is not None:
            self._note(func.name().partition(".")[0], weight, out)
        return out

    def _is_weight(self, value: object) -> bool:
        # It must be a matrix at least, because an addmm's bias is a weight too.
        return isinstance(value, Tensor) and value.dim() > 1 and _storage(value) in self._names

    def _note(self, operation: str, weight: Tensor, out: Tensor) -> None:
        name = self._names[_storage(weight)]
        if operation in _PRODUCTS:
            num_experts = weight.shape[0] if weight.dim() == 3 else 1
            num_rows = out.numel() // out.shape[-1]
            elements = weight.numel() // num_experts
            stored = self._stored.get(_storage(weight))
            held = None if stored is None else stored.num_bytes / num_experts
            is_fp8 = stored is not None and stored.is_fp8
            self.products.append(
                Product(_short(name), elements, num_experts, num_rows, held, name, is_fp8)
            )
        elif operation == _EMBEDDING:
            self.embedding_elements += out.numel()
        elif operation == _CAST:
            self._names[_storage(out)] = name
            if stored := self._stored.get(_storage(weight)):
                self._stored[_storage(out)] = stored
            # An address may not be used again for another tensor.
            self._kept.append(out)


def _storage(tensor: Tensor) -> int:
    """Return an id that a weight and its views have in common."""
    return int(tensor.untyped_storage()._cdata)


@torch.no_grad()
def model_work(skeleton: Skeleton, kv_format: KvFormat = PLAIN) -> ModelWork:
    """Return the work of one token in the target's layers, in lm_head and in the head."""
    target, head = skeleton.target, skeleton.head
    ids = torch.zeros(1, 1, dtype=torch.long, device=target.device)
    keeps_latents = skeleton.kv.keeps_latents
    probe = _WorkProbe(keeps_latents=keeps_latents, kv_format=kv_format)
    backbone_names = _weight_names(target.backbone)
    stored = _stored_weights(target.model, skeleton.scaled, target)
    hidden, work = _recorded(backbone_names, probe, lambda: target.forward(ids, ids, probe), stored)
    lm_head = _output_work(target, hidden, None, stored)
    if head is None:
        return ModelWork(work, lm_head)
    of_head = _stored_weights(head, skeleton.head_scaled, target)
    fed = head.to_input(hidden)

    def module_work(module: MtpModule) -> ModuleWork:
        own = module.output
        output = lm_head if own is None else _output_work(target, hidden, own, of_head)

        def of(fed: Tensor) -> ForwardWork:
            probe = _WorkProbe(keeps_latents=keeps_latents, kv_format=kv_format)
            return _module_work(target, module, fed, probe, of_head)

        first = of(fed)
        if head.family.is_parallel:
            return ModuleWork(_each_weight_once(first), output)
        if module.hidden_size == fed.shape[-1]:
            return ModuleWork(first, output)
        return ModuleWork(of(fed[..., : module.hidden_size]), output, first)

    modules = tuple(map(module_work, head.mtp_modules))
    return ModelWork(work, lm_head, modules, head.family.is_parallel)


def _each_weight_once(work: ForwardWork) -> ForwardWork:
    """Return ``work`` with one product for the context's and the block's with one weight.

    An engine can multiply both at once, so the weight is read once.
    """
    by_weight: dict[str, list[Product]] = {}
    for product in work.products:
        by_weight.setdefault(product.weight, []).append(product)
    merged = [replace(same[0], context_rows=len(same) - 1) for same in by_weight.values()]
    return replace(work, products=tuple(merged))


def _module_work(
    target: Target,
    module: MtpModule,
    fed: Tensor,
    probe: _WorkProbe,
    stored: StoredWeights,
) -> ForwardWork:
    """Return the work of one module's forward of one token, fed hidden states ``[1, 1, H]``."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=target.device)

    def step() -> Tensor:
        embeds = target.embed(ids, module.embedding)
        rope = module.rope(target, embeds, ids)
        return module(embeds, fed, rope, ids, probe)  # type: ignore[no-any-return]

    names = _weight_names(module) | _weight_names(target.model.get_input_embeddings())
    _, work = _recorded(names, probe, step, stored)
    return work


def _stored_weights(module: nn.Module, scaled: Mapping[str, Size], target: Target) -> StoredWeights:
    """Return the module's weights that are not of the model's dtype.

    They are FP8 ones with their scales, and those that stay in float32.
    """
    keeps = kept_in_float32(target.model, torch.bfloat16)
    kept = {
        _storage(weight): _Stored(weight.numel() * torch.float32.itemsize, is_fp8=False)
        for name, weight in module.named_parameters()
        if keeps(name)
    }
    weights = {name: module.get_parameter(name) for name in scaled}
    of_fp8 = {
        _storage(weight): _Stored(stored_bytes(weight.shape, scaled[name]), is_fp8=True)
        for name, weight in weights.items()
    }
    return kept | of_fp8


def _output_work(
    target: Target, hidden: HiddenStates, own: nn.Linear | None, stored: StoredWeights
) -> ForwardWork:
    """Return the product with the lm_head, or with a head's ``own`` output matrix."""
    module, name = (own, OWN_OUTPUT) if own is not None else (target.lm_head, "lm_head")
    normed = hidden.post_norm.new_zeros(1, 1, module.in_features)
    _, work = _recorded(
        {_storage(module.weight): name}, None, lambda: target.logits(normed, own), stored
    )
    return work


def _recorded(
    names: dict[int, str],
    probe: _WorkProbe | None,
    run: Callable[[], Any],
    stored: StoredWeights,
) -> tuple[Any, ForwardWork]:
    with _Recorder(names, stored) as recorder:
        out = run()
    return out, ForwardWork(
        products=tuple(recorder.products),
        attentions=() if probe is None else tuple(probe.attentions),
        states=() if probe is None else tuple(probe.state_shapes.values()),
        embedding_elements=recorder.embedding_elements,
    )


def _weight_names(module: nn.Module) -> dict[int, str]:
    """Return the names of the module's matrices by storage."""
    return {
        _storage(parameter): _in_layer(name)
        for name, parameter in module.named_parameters()
        if parameter.dim() > 1
    }


def _in_layer(name: str) -> str:
    """Return a weight's name from its layer on, without its suffix.

    ``model.layers.7.self_attn.q_proj.weight`` is ``layers.7.self_attn.q_proj``.
    """
    return re.sub(r"^.*(?=layers\.\d+\.)", "", name).removesuffix(".weight")


def _short(name: str) -> str:
    """Return what ``_in_layer`` returns without the layer. It is alike in every layer.

    ``layers.7.self_attn.q_proj`` and ``block.self_attn.q_proj`` are both ``self_attn.q_proj``.
    So is ``block.2.self_attn.q_proj``, of a head of several layers.
    """
    return re.sub(r"^(layers\.\d+|block(\.\d+)?)\.", "", name)
