"""The MTP draft head: one decoder block fed with the last hidden state and the next token."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cgbench.models.attention_hook import AttentionCall
from cgbench.models.families import HeadFamily


class DraftHead(nn.Module):
    """The tensors an MTP module owns; embedding and lm_head stay the target's.

    The block is the target's own decoder layer class, numbered one past its last layer, so that
    its keys and values live in a layer of the same KV cache.
    """

    def __init__(self, family: HeadFamily, target: PreTrainedModel) -> None:
        """A head of ``family`` for ``target``, on the current default device, not initialised."""
        super().__init__()
        self.family = family
        self.layer_idx: int = target.config.num_hidden_layers
        config = block_config(target.config)
        backbone = target.base_model
        size, eps = config.hidden_size, config.rms_norm_eps
        norm = type(backbone.norm)
        self.embed_norm = norm(size, eps=eps)
        self.hidden_norm = norm(size, eps=eps)
        self.proj = nn.Linear(2 * size, size, bias=False)
        self.block = type(backbone.layers[0])(config, self.layer_idx)
        self.out_norm = norm(size, eps=eps)

    def forward(
        self,
        token_embeds: Tensor,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor],
        position_ids: Tensor,
        attention_call: AttentionCall,
    ) -> Tensor:
        """One MTP step.

        ``token_embeds [B, S, H]`` of the tokens that follow the rows of ``hidden [B, S, H]``
        (the target's at draft 1, this head's own chain after), ``position_ids [B, S]`` of those
        hidden rows. Returns the block's output ``[B, S, H]``, before the output norm.
        """
        embeds = self.embed_norm(token_embeds)
        states = self.hidden_norm(hidden)
        parts = (embeds, states) if self.family.concat == "EH" else (states, embeds)
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
        """What the shared lm_head reads: the block's output after the output norm."""
        result = self.out_norm(block_output)
        assert isinstance(result, Tensor)
        return result

    def to_chain(self, block_output: Tensor, normed: Tensor) -> Tensor:
        """The hidden state that the next draft step is fed: before or after the output norm."""
        return normed if self.family.chain == "post" else block_output

    def expected_tensors(self) -> dict[str, torch.Size]:
        """The checkpoint's tensor names of this head, with their shapes."""
        return {self.family.tensor_name(n): p.shape for n, p in self.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over checkpoint tensors, keyed by the checkpoint's names; all must be there."""
        state = {self.family.module_name(name): tensor for name, tensor in tensors.items()}
        self.load_state_dict(state, strict=True, assign=True)


def block_config(config: PretrainedConfig) -> PretrainedConfig:
    """The target's config with one full-attention layer more, for the head's block to read."""
    extended = copy.deepcopy(config)
    # deepcopy keeps the attention implementation only as a private field.
    extended._attn_implementation = config._attn_implementation
    layer_types = getattr(config, "layer_types", None)
    extended.num_hidden_layers = config.num_hidden_layers + 1
    if layer_types is not None:
        extended.layer_types = [*layer_types, "full_attention"]
    return extended
