"""Define the MTP draft head: decoder blocks, each fed with a hidden state and a token after it."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cgbench.models.attention_hook import AttentionCall
from cgbench.models.division.splits import Splits
from cgbench.models.experts import apply_in_chunks, dispatch_experts
from cgbench.models.heads.dflash_config import DFlashForm
from cgbench.models.heads.eagle3_config import Eagle3Form
from cgbench.models.heads.families import HeadFamily
from cgbench.models.latent.latent_hook import hook_latent_layers
from cgbench.request.choices import ConcatOrder, NormForm, NormSide, OutputNorm

if TYPE_CHECKING:
    from cgbench.models.target import HiddenStates, Target


@dataclass(frozen=True, slots=True)
class HeadForm:
    """A head form states what one checkpoint's head has, if heads of its family differ.

    ``proj_bias``: the projection has a bias. ``own_embedding`` and ``own_output``: it embeds tokens
    and computes logits with matrices of its own, not the target's. ``dense``: its block is dense,
    or has experts, whatever the target's layers have. It is None if the config alone decides.
    ``eagle3`` is the form of an EAGLE-3 head's layer, and ``dflash`` that of a DFlash drafter. They
    are None for any other head.
    """

    proj_bias: bool = False
    own_embedding: bool = False
    own_output: bool = False
    dense: bool | None = None
    eagle3: Eagle3Form | None = None
    dflash: DFlashForm | None = None


class MtpModule(nn.Module):
    """An MTP module predicts one draft, with the tensors that it owns.

    It uses the target's embedding and lm_head unless its checkpoint has others. The block is the
    target's own decoder layer class, numbered past its last layer. So its keys and values live in a
    layer of the same KV cache.
    """

    target_ids: Tensor | None
    """The target's tokens ``[D]`` that the head can draft. They are None if it can draft all."""
    has_target_rows = False
    """Whether ``output`` holds rows of the target's output matrix: a reduced draft vocabulary."""

    def __init__(
        self, family: HeadFamily, target: PreTrainedModel, form: HeadForm, place: int
    ) -> None:
        """Make module ``place`` of a head of ``family`` for ``target``. Places count from 0.

        It is on the current default device and not initialised.
        """
        super().__init__()
        self.family = family
        self.place = place
        self.splits: Splits = {}
        """What the ranks share of the head."""
        text_config = target.config.get_text_config()
        self.num_layers: int = text_config.num_hidden_layers
        self.layer_idx: int = self.num_layers + place
        self.layer_type = head_layer_type(text_config, family, place)
        """Its attention's type, None where the model's layers are all of one kind."""
        config = block_config(text_config, family, place, dense=form.dense)
        backbone = target.get_decoder()
        size = self.hidden_size = int(config.hidden_size)
        self.embed_norm = _norm_like(backbone.norm, size) if family.input_norms else nn.Identity()
        self.hidden_norm = _norm_like(backbone.norm, size) if family.input_norms else nn.Identity()
        self.proj = nn.Linear(2 * size, size, bias=form.proj_bias)
        self.block = type(backbone.layers[-1])(config, self.layer_idx)
        dispatch_experts(self.block, text_config)
        apply_in_chunks(self.block)
        hook_latent_layers(self.block)
        if not family.block_norm:
            self.block.input_layernorm = nn.Identity()
        self.out_norm = (
            _norm_like(backbone.norm, size) if family.out_norm == OutputNorm.OWN else nn.Identity()
        )
        self.embedding = _like(target.get_input_embeddings()) if form.own_embedding else None
        """The head's own token embedding. It is None if the head reads the target's."""
        vocab_size = target.get_output_embeddings().out_features
        self.output = nn.Linear(size, vocab_size, bias=False) if form.own_output else None
        """The head's own output matrix. It is None if the head multiplies with the target's."""
        self.register_buffer("target_ids", None, persistent=False)
        # A tuple hides the target's norm from torch, so it is none of the head's modules.
        self._target_norm = (backbone.norm,)

    def forward(
        self,
        token_embeds: Tensor,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        position_ids: Tensor,
        attention_call: AttentionCall,
    ) -> Tensor:
        """Run one MTP step, and return the block's output ``[B, S, H]``, before the output norm.

        ``token_embeds [B, S, H]`` are those of the tokens that follow the rows of ``hidden [B, S,
        H]``. ``hidden`` is the target's at draft 1, and the chain or the target's afterwards.
        ``position_ids [B, S]`` are those of the hidden rows.
        """
        embeds = self.embed_norm(token_embeds)
        states = self.hidden_norm(hidden)
        parts = (embeds, states) if self.family.concat == ConcatOrder.EH else (states, embeds)
        out = self.block(
            self.proj(torch.cat(parts, dim=-1)),
            attention_mask=None,
            position_ids=position_ids,
            position_embeddings=rope,
            use_cache=False,
            attention_call=attention_call,
        )
        # Some decoder layers return a tuple whose first entry is the hidden state.
        result = out[0] if isinstance(out, tuple) else out
        assert isinstance(result, Tensor)
        return result

    def to_logits_input(self, block_output: Tensor) -> Tensor:
        """Return the input of the output matrix: the block's output after the output norm."""
        if self.family.out_norm == OutputNorm.TARGET:
            # forward, not a call, because a hook on this norm keeps the target's hidden state.
            result = self._target_norm[0].forward(block_output)
        else:
            result = self.out_norm(block_output)
        assert isinstance(result, Tensor)
        return result

    def to_chain(self, block_output: Tensor, normed: Tensor) -> Tensor:
        """Return the hidden state that the next draft step is fed.

        It is the one before or after the output norm, as the family states.
        """
        return normed if self.family.chain == NormSide.POST else block_output

    def rope(self, target: "Target", like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotary cosines and sines for ``position_ids [B, S]``, in the dtype of
        ``like``."""
        return target.rope(like, position_ids, self.layer_type)

    def to_target(self, drafts: Tensor) -> Tensor:
        """Return the target's tokens that ``drafts [...]`` of the head's vocabulary are."""
        return drafts if self.target_ids is None else self.target_ids[drafts]

    def over_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        """Return ``logits [..., D]`` of the head's vocabulary over the target's, ``[..., V]``.

        A token that the head cannot draft has the least number of the dtype.
        """
        if self.target_ids is None:
            return logits
        least = torch.finfo(logits.dtype).min
        whole = logits.new_full((*logits.shape[:-1], vocab_size), least)
        return whole.index_copy_(-1, self.target_ids, logits)

    @property
    def layers(self) -> list[nn.Module]:
        """Return the decoder layers that the module runs."""
        return [self.block]

    @property
    def number(self) -> int:
        """Return the number that a checkpoint gives this module."""
        return self.family.first_number(self.num_layers) + self.place

    def _norm_shift(self) -> int:
        """Return what is added to a stored norm weight to fit the target's norm modules."""
        if self.family.norm_form == NormForm.TARGET:
            return 0
        return (self.family.norm_form == NormForm.ONE_PLUS) - adds_one(self._target_norm[0])


class DraftHead(MtpModule):
    """A draft head is its first MTP module, and has the ``later`` ones if there are several.

    Draft step j runs module j. Steps past the last module run the last one again. A head of one
    module is therefore recurrent from draft 2 on.
    """

    def __init__(self, family: HeadFamily, target: PreTrainedModel, *forms: HeadForm) -> None:
        """Make a head of ``family`` for ``target`` with a module for each of ``forms``.

        Without forms it has one module of the plain form. It is on the current default device and
        not initialised.
        """
        first, *others = forms or (HeadForm(),)
        super().__init__(family, target, first, 0)
        self.later = nn.ModuleList(
            MtpModule(family, target, form, place) for place, form in enumerate(others, 1)
        )

    @property
    def mtp_modules(self) -> tuple[MtpModule, ...]:
        """Return every module, in the order of the draft steps."""
        return (self, *self._later())

    def _later(self) -> list[MtpModule]:
        return [each for each in self.later if isinstance(each, MtpModule)]

    @property
    def num_modules(self) -> int:
        """Return how many modules the head has."""
        return 1 + len(self.later)

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """Return the target's layers whose input the head is fed. Most heads have none."""
        return ()

    @property
    def fed_size(self) -> int:
        """Return the width of the target's states that draft 1 is fed."""
        return self.hidden_size

    @property
    def draft_vocab_size(self) -> int | None:
        """Return how many tokens a draft can be, or None if it can be any of the target's."""
        return None if self.target_ids is None else len(self.target_ids)

    @property
    def layer_numbers(self) -> range:
        """Return the numbers of the modules' KV layers."""
        return range(self.layer_idx, self.layer_idx + self.num_modules)

    @property
    def all_splits(self) -> Splits:
        """Return what the ranks share of every module, by this head's names."""
        return {
            module_prefix(module.place) + name: split
            for module in self.mtp_modules
            for name, split in module.splits.items()
        }

    def module_of(self, step: int) -> MtpModule:
        """Return the module that makes draft ``step``, which counts from 1."""
        return self.mtp_modules[min(step, self.num_modules) - 1]

    def to_input(self, hidden: "HiddenStates") -> Tensor:
        """Return the target's hidden states ``[B, S, H]`` in the form that the head is fed."""
        return hidden.post_norm if self.family.hidden_in == NormSide.POST else hidden.pre_norm

    def owner_of(self, name: str) -> tuple[MtpModule, str]:
        """Return the module that has the tensor ``name`` of this head, and its name there."""
        if not name.startswith(_LATER):
            return self, name
        place, _, inner = name.removeprefix(_LATER).partition(".")
        return self._later()[int(place)], inner

    def tensor_name(self, module_name: str) -> str:
        """Return the checkpoint's name of one of this head's tensors, without the family's
        infix."""
        owner, inner = self.owner_of(module_name)
        return self.family.tensor_name(inner, owner.number)

    def is_of_target(self, name: str) -> bool:
        """Return whether the tensor ``name`` of this head is gathered from the target's."""
        owner, inner = self.owner_of(name)
        return owner.has_target_rows and inner.startswith("output.")

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors keyed by this module's names. All must be there."""
        if shift := self._norm_shift():
            tensors = {
                name: tensor.float() + shift if is_norm(name) else tensor
                for name, tensor in tensors.items()
            }
        self.load_state_dict(tensors, strict=True, assign=True)


# How the names of the later modules' tensors begin, before the number and the name itself.
_LATER = "later."


def module_prefix(place: int) -> str:
    """Return how a head's names of the tensors of module ``place`` begin. Places count from 0."""
    return f"{_LATER}{place - 1}." if place else ""


def _like(embedding: nn.Module) -> nn.Module:
    """Return a module like the target's embedding, with a matrix of its own.

    It is scaled as the target's is.
    """
    weight = embedding.weight
    assert isinstance(weight, nn.Parameter)
    own = nn.Parameter(torch.empty(tuple(weight.shape)), requires_grad=False)
    # Everything except the matrix is copied, such as the scale of Gemma's.
    return copy.deepcopy(embedding, {id(weight): own})


def is_norm(name: str) -> bool:
    """Return whether a tensor of ``DraftHead`` is the weight of a norm."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    return module.endswith("norm")


def _norm_like(norm: nn.Module, size: int) -> nn.Module:
    """Return a new norm of the same class and epsilon, over ``size`` features."""
    eps = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return type(norm)(size, eps=eps)


@torch.no_grad()
def adds_one(norm: nn.Module) -> bool:
    """Return whether a norm scales by 1 + w, as Gemma's and Qwen3-Next's do, and not by w."""
    with torch.device("cpu"):
        small = _norm_like(norm, 2).float()
        for weight in small.parameters():
            weight.zero_()
        return bool(small(torch.tensor([[1.0, 2.0]])).any())


def head_layer_type(
    config: PretrainedConfig, family: HeadFamily | None = None, place: int = 0
) -> str | None:
    """Return the attention type of the block of module ``place``, which counts from 0.

    It is None if the model's layers are all of one kind. The checkpoint's ``mtp_layer_types`` comes
    first, and then the family's. That is the type of the target's first layer, sliding, or full
    attention. If the target has no such layers, it is the type of its last layer.
    """
    if stated := _stated(config, "layer_types", place):
        return str(stated)
    layer_types = getattr(config, "layer_types", None)
    if not layer_types:
        return None
    wanted = "full_attention"
    if family is not None and family.block_attention == "first":
        wanted = str(layer_types[0])
    elif family is not None and family.block_attention == "sliding":
        wanted = "sliding_attention"
    return wanted if wanted in layer_types else str(layer_types[-1])


def _stated(config: PretrainedConfig, name: str, place: int) -> object:
    """Return what config.json states of a per-layer setting for module ``place``, or None.

    A list that is too short ends in what holds for the rest.
    """
    stated = getattr(config, f"mtp_{name}", None)
    return stated[min(place, len(stated) - 1)] if stated else None


def block_config(
    config: PretrainedConfig,
    family: HeadFamily | None = None,
    place: int = 0,
    *,
    dense: bool | None = None,
) -> PretrainedConfig:
    """Return the target's config with layers more, of which the last is module ``place``'s."""
    extended = copy.deepcopy(config)
    # deepcopy keeps these two only as private fields.
    extended._attn_implementation = config._attn_implementation
    extended._experts_implementation = config._experts_implementation
    num_layers, layer = config.num_hidden_layers, config.num_hidden_layers + place
    extended.num_hidden_layers = layer + 1
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == num_layers and not name.startswith("_"):
            own = _of_head(config, name, value, family, place)
            setattr(extended, name, [*value, *[own] * (place + 1)])
    if dense is not None:
        _choose_mlp(extended, layer, dense=dense)
    _choose_heads(extended, layer)
    return extended


def _of_head(
    config: PretrainedConfig,
    name: str,
    per_layer: list[object],
    family: HeadFamily | None,
    place: int,
) -> object:
    """Return a per-layer setting's value for a module's block.

    It is that of the last layer unless it is stated.
    """
    if name == "layer_types":
        return head_layer_type(config, family, place)
    stated = _stated(config, name, place)
    return per_layer[-1] if stated is None else stated


def _choose_mlp(config: PretrainedConfig, layer: int, *, dense: bool) -> None:
    """Make ``layer`` dense or one of experts.

    transformers' configs state it in three ways: a type a layer, a list of the dense ones, or how
    many come first.
    """
    if types := getattr(config, "mlp_layer_types", None):
        config.mlp_layer_types = [*types[:layer], "dense" if dense else "sparse"]
    if isinstance(getattr(config, "mlp_only_layers", None), list) and dense:
        config.mlp_only_layers = [*config.mlp_only_layers, layer]
    if isinstance(getattr(config, "first_k_dense_replace", None), int) and dense:
        config.first_k_dense_replace = layer + 1


def _choose_heads(config: PretrainedConfig, layer: int) -> None:
    """Give ``layer`` what a config states apart for the layers of its type, such as the query heads
    of Step's sliding layers."""
    if not getattr(config, "is_heterogeneous", False):
        return
    stated = config.to_dict().get("per_layer_config") or {}
    overrides = {int(number): values for number, values in stated.items()}
    like = config.layer_types.index(config.layer_types[layer])
    config.per_layer_config = {**overrides, layer: overrides.get(like, {})}
