"""Define the EAGLE-3 draft head: one Llama layer over three hidden states of the target.

Draft 1 is fed the inputs of three of the target's layers, which ``fc`` projects to one hidden
state. Later drafts are fed the layer's own output. The layer's attention reads the normed embedding
beside the normed hidden state, so its query, key and value have 2H inputs. The residual is the
hidden state alone. The head may draft a part of the target's vocabulary.

Sources: Li et al. 2025, arXiv:2503.01840, SafeAILab/EAGLE's cnets, and vLLM's llama_eagle3.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from cgbench.models.attention_hook import AttentionCall
from cgbench.models.heads.aux_head import AuxHead
from cgbench.models.heads.eagle3_config import Eagle3Form
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import HeadForm

if TYPE_CHECKING:
    pass


class Eagle3Layer(nn.Module):
    """An EAGLE-3 layer is Llama's decoder layer, whose attention reads two inputs side by side."""

    def __init__(self, config: LlamaConfig, layer_idx: int, *, norm_before_residual: bool) -> None:
        """Make the layer with number ``layer_idx`` of the KV cache, not initialised."""
        super().__init__()
        self.norm_before_residual = norm_before_residual
        self.hidden_norm = _norm(config)
        self.input_layernorm = _norm(config)
        self.self_attn = LlamaAttention(config, layer_idx)
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow = getattr(self.self_attn, name)
            has_bias = narrow.bias is not None
            wide = nn.Linear(2 * config.hidden_size, narrow.out_features, bias=has_bias)
            setattr(self.self_attn, name, wide)
        self.post_attention_layernorm = _norm(config)
        self.mlp = LlamaMLP(config)

    def forward(
        self,
        embeds: Tensor,
        hidden: Tensor,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_call: AttentionCall,
    ) -> Tensor:
        """Return the hidden states after ``hidden [B, S, H]`` and the ``embeds [B, S, H]`` of the
        tokens that follow them."""
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        attended, _ = self.self_attn(
            torch.cat((self.input_layernorm(embeds), normed), dim=-1),
            position_embeddings=position_embeddings,
            attention_mask=None,
            attention_call=attention_call,
        )
        states = residual + attended
        result: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return result


class Eagle3Head(AuxHead):
    """An EAGLE-3 head makes every draft with one layer, whose sizes are its own.

    It has the members of a ``DraftHead`` of one module. ``proj`` is its ``fc``.
    """

    def __init__(self, family: HeadFamily, target: PreTrainedModel, form: HeadForm) -> None:
        """Make the head of ``form`` for ``target``.

        It is on the current default device and not initialised.
        """
        nn.Module.__init__(self)
        assert form.eagle3 is not None
        self.form: Eagle3Form = form.eagle3
        self.family = family
        self.place = 0
        self.splits = {}
        text_config = target.config.get_text_config()
        self.num_layers = text_config.num_hidden_layers
        self.layer_idx = self.num_layers
        self.layer_type = None
        config = self.form.config
        self.hidden_size = config.hidden_size
        self.embed_norm, self.hidden_norm = nn.Identity(), nn.Identity()
        num_fed = family.num_aux * text_config.hidden_size
        self.proj = nn.Linear(num_fed, self.hidden_size, bias=form.proj_bias)
        self.block = Eagle3Layer(
            config, self.layer_idx, norm_before_residual=self.form.norm_before_residual
        )
        self.out_norm = _norm(config)
        num_tokens = target.get_input_embeddings().weight.shape[0]
        own = nn.Embedding(num_tokens, self.hidden_size) if form.own_embedding else None
        self.embedding = own
        vocab_size = target.get_output_embeddings().out_features
        ids = self.form.target_ids
        size = vocab_size if ids is None else len(ids)
        self.output = nn.Linear(self.hidden_size, size, bias=False) if form.own_output else None
        self.later = nn.ModuleList()
        self.register_buffer("target_ids", None, persistent=False)
        self._fill_buffers(None)

    def _fill_buffers(self, device: torch.device | None) -> None:
        """Make what no checkpoint stores as the head holds it, on ``device`` or the default one."""
        device = torch.get_default_device() if device is None else device
        with device:
            self.rotary = LlamaRotaryEmbedding(self.form.config)
        ids = self.form.target_ids
        self.target_ids = None if ids is None else ids.to(device)

    def forward(
        self,
        token_embeds: Tensor,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        position_ids: Tensor,
        attention_call: AttentionCall,
    ) -> Tensor:
        """Run one draft step, and return the layer's output ``[B, S, H]`` before the output norm.

        ``hidden`` is three states of the target, ``[B, S, 3H]``, at draft 1. It is the layer's own
        output ``[B, S, H]`` afterwards.
        """
        states = self.proj(hidden) if hidden.shape[-1] == self.fed_size else hidden
        result: Tensor = self.block(
            token_embeds, states, position_embeddings=rope, attention_call=attention_call
        )
        return result

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over tensors keyed by this module's names. All must be there."""
        self.load_state_dict(tensors, strict=True, assign=True)
        self._fill_buffers(self.proj.weight.device)


def _norm(config: LlamaConfig) -> nn.Module:
    norm: nn.Module = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    return norm
