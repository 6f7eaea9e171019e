"""Define the DFlash drafter: Qwen3 layers that make every draft in one forward.

``fc`` and a norm project states of the target at each token of the context to one state. Every
layer makes keys and values of it, which are all that a layer sees of the context. The forward runs
a block over them: the newest token, and a mask token for each draft. The block's positions see the
context and one another, later ones too. The state at a mask makes the draft of that position.

Source: z-lab's DFlash, arXiv:2602.06036.
"""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
    rotate_half,
)

from cgbench.models.attention_hook import AttentionCall
from cgbench.models.heads.aux_head import AuxHead
from cgbench.models.heads.dflash_config import DFlashForm
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import HeadForm
from cgbench.models.projections import PackedFirst

if TYPE_CHECKING:
    pass


class ContextCall(AttentionCall, Protocol):
    """A context call keeps keys and values of rows that attend to nothing themselves."""

    def keep(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Keep ``key`` and ``value [B, H, S, D]`` of the call's rows in layer ``layer_idx``."""
        ...


class ContextKeys(nn.Module):
    """This module makes a layer's keys of the context: normed, then rotated.

    It is a module so that its few operations can be compiled to one kernel.
    """

    def forward(self, norm: nn.Module, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return ``key [B, S, H, D]`` after ``norm`` and rotary, as ``[B, H, S, D]``.

        ``cos`` and ``sin`` are ``[B, S, D]``.
        """
        normed: Tensor = norm(key).transpose(1, 2)
        turned: Tensor = rotate_half(normed)
        return normed * cos[:, None] + turned * sin[:, None]


class DFlashHead(AuxHead):
    """A DFlash drafter makes all k drafts in one forward, with layers whose sizes are its own.

    It has the members of a ``DraftHead`` of one module. ``proj`` is its ``fc``, and ``block`` its
    layers.
    """

    mask_token: Tensor
    """The target's token ``[1]`` that stands for each draft."""

    def __init__(self, family: HeadFamily, target: PreTrainedModel, form: HeadForm) -> None:
        """Make the drafter of ``form`` for ``target``.

        It is on the current default device and not initialised.
        """
        nn.Module.__init__(self)
        assert form.dflash is not None
        self.form: DFlashForm = form.dflash
        self.family = family
        self.place = 0
        self.splits = {}
        text_config = target.config.get_text_config()
        self.num_layers = self.layer_idx = text_config.num_hidden_layers
        self.layer_type = None
        config = self.form.config
        self.hidden_size = config.hidden_size
        self.embed_norm = nn.Identity()
        num_fed = len(self.form.aux_layers) * text_config.hidden_size
        self.proj = nn.Linear(num_fed, self.hidden_size, bias=False)
        self.hidden_norm: nn.Module = Qwen3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        numbers = range(config.num_hidden_layers)
        self.block = nn.ModuleList(Qwen3DecoderLayer(config, number) for number in numbers)
        for number, attention in enumerate(self._attentions()):
            attention.layer_idx = self.layer_idx + number
            attention.sees_block = number not in self.form.causal_layers
        self.out_norm = Qwen3RMSNorm(self.hidden_size, eps=config.rms_norm_eps)
        self.embedding, self.output = None, None
        self.later = nn.ModuleList()
        self.context_keys = ContextKeys()
        self.register_buffer("target_ids", None, persistent=False)
        self._fill_buffers(None)

    def _fill_buffers(self, device: torch.device | None) -> None:
        """Make what no checkpoint stores, on ``device`` or the default one."""
        device = torch.get_default_device() if device is None else device
        with device:
            self.rotary = Qwen3RotaryEmbedding(self.form.config)
        mask = torch.tensor([self.form.mask_token], device=device)
        self.register_buffer("mask_token", mask, persistent=False)

    def _attentions(self) -> list[Any]:
        return [layer.get_submodule("self_attn") for layer in self.block]

    @property
    def layers(self) -> list[nn.Module]:
        """Return the decoder layers that the drafter runs."""
        return [*self.block]

    @property
    def layer_numbers(self) -> range:
        """Return the numbers of the layers' KV layers."""
        return range(self.layer_idx, self.layer_idx + len(self.block))

    def keep_context(self, hidden: Tensor, rope: tuple[Tensor, Tensor], call: ContextCall) -> None:
        """Keep every layer's keys and values of the rows whose states are ``hidden [B, S, A * H]``.

        ``rope`` is of the rows' positions, and ``call`` places them.
        """
        context = self.hidden_norm(self.proj(hidden))
        for attention in self._attentions():
            key, value = _keys_and_values(attention, context)
            rotated = self.context_keys(attention.k_norm, key, *rope)
            call.keep(attention.layer_idx, rotated, value.transpose(1, 2))

    def forward(
        self,
        token_embeds: Tensor,
        hidden: Tensor | None,
        rope: tuple[Tensor, Tensor],
        position_ids: Tensor,
        attention_call: ContextCall,  # type: ignore[override]
    ) -> Tensor:
        """Run a block, and return the layers' output ``[B, S, H]`` before the output norm.

        ``token_embeds [B, S, H]`` are those of the newest token and of the masks. ``hidden`` are
        states ``[B, S, A * H]`` of context rows at the same positions, which are kept first. It is
        None if the context is there already.
        """
        if hidden is not None:
            # Shapes and work are found out by one forward of both.
            self.keep_context(hidden, rope, attention_call)
        states = token_embeds
        for layer in self.block:
            states = layer(
                states,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=rope,
                attention_call=attention_call,
            )
        return states

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors keyed by this module's names. All must be there."""
        self.load_state_dict(tensors, strict=True, assign=True)
        self._fill_buffers(self.proj.weight.device)


def _keys_and_values(attention: Any, context: Tensor) -> tuple[Tensor, Tensor]:
    """Return the layer's keys and values ``[B, S, H, D]`` of ``context [B, S, H]``, not normed."""
    first, size = attention.q_proj, attention.head_dim
    if isinstance(first, PackedFirst):
        key, value = first.others_of(context)
    else:
        key, value = attention.k_proj(context), attention.v_proj(context)
    return key.unflatten(-1, (-1, size)), value.unflatten(-1, (-1, size))
