"""The target: a transformers causal LM whose attention the engine computes."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

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


def check_config(config: PretrainedConfig) -> None:
    """Refuse, by name, a model whose attention does not go through transformers' interface.

    Before any weight is loaded. Raises ``UnsupportedModelError``.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"MODEL: {config.model_type} is no decoder-only language model that transformers knows"
        )
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(kind, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"{kind.__name__}: its attention does not go through transformers' "
            "AttentionInterface; choose a model that does (Llama, Qwen2, Qwen3, Mistral, MiMo, ...)"
        )


def check_capturable(target: Target) -> None:
    """Refuse, by name, what reads a device value on the host in its forward.

    Raises ``UnsupportedModelError``. Source: transformers' rotary types ``dynamic`` and
    ``longrope`` recompute their frequencies from the largest position.
    """
    kinds = _rope_types(target.model.config)
    if found := sorted(kinds & {"dynamic", "longrope"}):
        raise UnsupportedModelError(
            f"{type(target.model).__name__}: rotary type '{found[0]}' cannot be captured; "
            "--scopes eager runs without graphs"
        )


def _rope_types(config: PretrainedConfig) -> set[str]:
    """The config's rotary types; some models have one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type", "default")) for each in [parameters, *nested]}


def check_supported(model: PreTrainedModel) -> None:
    """Refuse, by name, a model whose parts the engine cannot work with."""
    kind = type(model).__name__
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
    """A digest of the config and of all weights: equal models, equal fingerprint.

    A tensor enters as the sums of its raw integers along rows and along columns, taken on the
    device: a changed weight changes them, and so does another order of either.
    """
    digest = hashlib.sha256(_config_text(target).encode())
    modules: list[nn.Module] = [target.model] if head is None else [target.model, head]
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            raw = tensor.contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()])
            matrix = raw.reshape(-1, raw.shape[-1] if raw.dim() else 1)
            for dim in (0, 1):
                digest.update(matrix.sum(dim, dtype=torch.long).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _config_text(target: Target) -> str:
    """The config without where it was found and what wrote it."""
    config = target.model.config.to_dict()
    kept = {key: config[key] for key in sorted(config.keys() - _NOT_THE_MODEL)}
    return json.dumps(kept, default=str)


_NOT_THE_MODEL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
