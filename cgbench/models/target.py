"""The target: a transformers causal LM whose attention the engine computes."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cgbench.errors import UnsupportedModelError
from cgbench.models.attention_hook import ATTENTION_NAME, AttentionCall, ShapeProbe
from cgbench.models.head import DraftHead


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """The target's last hidden states, ``[B, S, H]`` each, around its final norm."""

    pre_norm: Tensor
    post_norm: Tensor


class Target:
    """Tensors in, tensors out: a decoder-only model without its KV cache and its masks."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ``UnsupportedModelError`` where the model's attention cannot be taken over."""
        check_supported(model)
        self.model = model.eval()
        self.backbone: nn.Module = model.base_model
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.hidden_size: int = model.config.hidden_size
        self.num_layers: int = model.config.num_hidden_layers
        self._pre_norm: Tensor | None = None
        norm = self.backbone.norm
        assert isinstance(norm, nn.Module)
        norm.register_forward_pre_hook(self._keep_pre_norm)

    def _keep_pre_norm(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._pre_norm = args[0]

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def max_positions(self) -> int:
        """The longest sequence the checkpoint was made for, in tokens."""
        value = self.model.config.max_position_embeddings
        assert isinstance(value, int)
        return value

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_call: AttentionCall
    ) -> HiddenStates:
        """``input_ids`` and ``position_ids [B, S]`` through every layer and the final norm."""
        out = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            attention_call=attention_call,
        )
        pre_norm, self._pre_norm = self._pre_norm, None
        assert pre_norm is not None
        return HiddenStates(pre_norm, out.last_hidden_state)

    def logits(self, normed: Tensor) -> Tensor:
        """The shared lm_head: ``[..., H]`` after a final norm to ``[..., vocab]``."""
        result = self.model.get_output_embeddings()(normed)
        assert isinstance(result, Tensor)
        return result

    def embed(self, token_ids: Tensor) -> Tensor:
        """The shared token embedding: ``[...]`` to ``[..., H]``."""
        result = self.model.get_input_embeddings()(token_ids)
        assert isinstance(result, Tensor)
        return result

    def rope(self, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary cosines and sines for ``position_ids [B, S]``, in ``like``'s dtype."""
        rotary = self.backbone.rotary_emb
        assert isinstance(rotary, nn.Module)
        cos, sin = rotary(like, position_ids)
        return cos, sin


def check_supported(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose attention does not go through transformers' interface."""
    kind = type(model).__name__
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"{kind}: its attention does not go through transformers' AttentionInterface; "
            "choose a model that supports it (Llama, Qwen2, Qwen3, Mistral, MiMo, ...)"
        )
    for part in ("layers", "norm", "rotary_emb"):
        if not hasattr(model.base_model, part):
            raise UnsupportedModelError(
                f"{kind}: its backbone has no '{part}'; "
                "only decoder-only models with rotary positions can be run"
            )
    config = model.config
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModelError(f"{kind}: attention soft-capping is not supported")
    if hasattr(model.base_model.layers[0], "self_attn") and hasattr(
        model.base_model.layers[0].self_attn, "sinks"
    ):
        raise UnsupportedModelError(f"{kind}: attention sinks are not supported")
    if config._attn_implementation != ATTENTION_NAME:
        raise UnsupportedModelError(f"{kind}: refused the attention implementation 'cgbench'")


@torch.no_grad()
def probe_kv_shapes(target: Target, head: DraftHead | None) -> ShapeProbe:
    """Each layer's KV shape, read off one token's forward, so that no config field is trusted."""
    probe = ShapeProbe()
    ids = torch.zeros(1, 1, dtype=torch.long, device=target.device)
    hidden = target.forward(ids, ids, probe)
    if head is not None:
        embeds = target.embed(ids)
        head(embeds, hidden.pre_norm, target.rope(embeds, ids), ids, probe)
    missing = set(range(target.num_layers)) - set(probe.kv_shapes)
    if missing:
        raise UnsupportedModelError(
            f"{type(target.model).__name__}: layers {sorted(missing)} have no attention of the "
            "usual kind; hybrid and recurrent targets are not supported"
        )
    return probe


@torch.no_grad()
def fingerprint(target: Target, head: DraftHead | None) -> str:
    """A digest of names, shapes, dtypes and contents: equal weights, equal fingerprint.

    Contents enter as each tensor's sum of raw integers, so a changed weight changes it; read on
    the device, once over the weights.
    """
    digest = hashlib.sha256()
    modules: list[nn.Module] = [target.model] if head is None else [target.model, head]
    for module in modules:
        for name, tensor in module.state_dict().items():
            raw = tensor.contiguous().view(torch.uint8)
            total = int(raw.view(_INTEGER_OF_SIZE[tensor.element_size()]).sum(dtype=torch.long))
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {total}\n".encode())
    return digest.hexdigest()[:16]


_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
