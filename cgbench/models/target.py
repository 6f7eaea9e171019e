"""Wrap the target: a transformers causal LM whose attention the engine computes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from cgbench.errors import UnsupportedModelError
from cgbench.models.attention_hook import AttentionCall, ShapeProbe
from cgbench.models.division.shards import VocabLinear
from cgbench.models.division.splits import LM_HEAD, Splits
from cgbench.models.experts import apply_in_chunks, take_over_loops
from cgbench.models.heads.head import DraftHead, head_layer_type
from cgbench.models.latent.latent_hook import hook_latent_layers
from cgbench.models.recurrent_hook import hook_linear_layers
from cgbench.models.routing import BalancedRouting, mixtures_of, probed_shapes
from cgbench.models.support import check_supported, check_windows
from cgbench.parallel.collectives import argmax_over_ranks, joined_over_ranks


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """This class holds the target's last hidden states, before and after its final norm.

    ``aux`` are the inputs of the layers that are watched. Each is ``[B, S, H]``.
    """

    pre_norm: Tensor
    post_norm: Tensor
    aux: tuple[Tensor, ...] = ()


class Target:
    """A target is a decoder-only model without its KV cache and its masks.

    Its methods take tensors and return tensors.
    """

    def __init__(self, model: PreTrainedModel, splits: Splits | None = None) -> None:
        """Take over the model's attention. ``splits`` is what the ranks share of it.

        Raise ``UnsupportedModelError`` if the attention cannot be taken over.
        """
        check_supported(model)
        self.splits: Splits = splits or {}
        self.model = model.eval()
        self.backbone: nn.Module = model.get_decoder()
        hook_linear_layers(self.backbone)
        hook_latent_layers(self.backbone)
        self.config: PretrainedConfig = model.config.get_text_config()
        take_over_loops(model, self.device, self.dtype)
        apply_in_chunks(self.backbone)
        self.vocab_size: int = model.get_output_embeddings().out_features
        self.hidden_size: int = self.config.hidden_size
        self.num_layers: int = self.config.num_hidden_layers
        self.routing: BalancedRouting | None = None
        """This chooses experts in the router's place. It is None if the router chooses."""
        self.aux_layers: tuple[int, ...] = ()
        self._aux: dict[int, Tensor] = {}
        self._aux_hooks: list[RemovableHandle] = []
        self._pre_norm: Tensor | None = None
        self._has_typed_rope = _has_typed_rope(self.backbone.rotary_emb)
        self._rescale = _logits_rescale(model.config)
        norm = self.backbone.norm
        assert isinstance(norm, nn.Module)
        norm.register_forward_pre_hook(self._keep_pre_norm)

    def watch_layers(self, layers: tuple[int, ...]) -> None:
        """Let every forward return the inputs of ``layers`` too, in that order.

        The number of layers stands for the final norm. The hooks run outside the layers, so a
        compiled layer is watched as well.
        """
        for hook in self._aux_hooks:
            hook.remove()
        self.aux_layers = layers
        layers_in_order, norm = self.backbone.layers, self.backbone.norm
        assert isinstance(layers_in_order, nn.ModuleList) and isinstance(norm, nn.Module)
        modules = [*layers_in_order, norm]
        self._aux_hooks = [
            modules[layer].register_forward_pre_hook(
                partial(self._keep_aux, layer), with_kwargs=True
            )
            for layer in layers
        ]

    def _keep_aux(
        self, layer: int, _: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]
    ) -> None:
        self._aux[layer] = args[0] if args else kwargs["hidden_states"]

    def _keep_pre_norm(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._pre_norm = args[0]

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the model's weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def as_request(self, tokens: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context in which transformers' own forwards belong to one request.

        The request begins with ``tokens``. Balanced routing needs it.
        """
        if self.routing is None:
            return nullcontext()
        return self.routing.as_request(request_keys([tokens], self.device))

    @property
    def has_mixtures(self) -> bool:
        """Return whether any layer is a mixture of experts."""
        return bool(mixtures_of(self.backbone, None))

    @property
    def lm_head(self) -> nn.Linear:
        """Return the target's output matrix, or this rank's part of it."""
        lm_head = self.model.get_output_embeddings()
        assert isinstance(lm_head, nn.Linear)
        return lm_head

    @property
    def last_token(self) -> int:
        """Return the vocabulary's last token that has an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0]) - 1

    @property
    def max_positions(self) -> int:
        """Return the longest sequence that the checkpoint was made for, in tokens.

        For rotary type ``longrope`` it is the original length. Beyond that transformers uses other
        frequencies for a whole batch at once. It drops the keys that were made before.
        """
        value = self.config.max_position_embeddings
        parameters = getattr(self.config, "rope_parameters", None) or {}
        if parameters.get("rope_type") == "longrope":
            value = parameters.get("original_max_position_embeddings", value)
        assert isinstance(value, int)
        return value

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_call: AttentionCall
    ) -> HiddenStates:
        """Run ``input_ids`` and ``position_ids [B, S]`` through every layer and the final norm.

        Return the hidden states before and after the norm.
        """
        out = self.backbone(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            attention_call=attention_call,
        )
        pre_norm, self._pre_norm = self._pre_norm, None
        assert pre_norm is not None
        aux = tuple(self._aux.pop(layer) for layer in self.aux_layers)
        return HiddenStates(pre_norm, out.last_hidden_state, aux)

    def logits(self, normed: Tensor, output: nn.Module | None = None) -> Tensor:
        """Return the logits ``[..., vocab]`` of hidden states ``[..., H]`` after a final norm.

        They are computed by the lm_head, or by ``output``, which is a head's own.
        """
        result = self._output(output)(normed)
        assert isinstance(result, Tensor)
        return self._rescale(result)

    def logits_part(self, normed: Tensor, output: nn.Module | None = None) -> Tensor:
        """Return this rank's part of ``logits``, or all if the vocabulary is not divided."""
        matrix = self._output(output)
        if not isinstance(matrix, VocabLinear):
            return self.logits(normed, output)
        return self._rescale(matrix.part(normed))

    def _output(self, output: nn.Module | None) -> nn.Module:
        chosen = self.model.get_output_embeddings() if output is None else output
        assert isinstance(chosen, nn.Module)
        return chosen

    @property
    def divides_vocabulary(self) -> bool:
        """Return whether each rank computes the logits of a part of the vocabulary."""
        return LM_HEAD in self.splits

    def argmax(self, logits_part: Tensor, argmax: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the likeliest tokens ``[...]`` of ``logits_part [..., V / N]``.

        Whole logits are never made. ``argmax`` is the argmax of one part.
        """
        if self.divides_vocabulary:
            return argmax_over_ranks(logits_part, argmax)
        return argmax(logits_part)

    def whole_logits(self, logits_part: Tensor) -> Tensor:
        """Return the logits ``[..., V]`` of which every rank has a ``logits_part``."""
        return joined_over_ranks(logits_part) if self.divides_vocabulary else logits_part

    def embed(self, token_ids: Tensor, embedding: nn.Module | None = None) -> Tensor:
        """Return the embeddings ``[..., H]`` of ``token_ids [...]``.

        They are the target's, or those of ``embedding``, which is a head's own.
        """
        module = self.model.get_input_embeddings() if embedding is None else embedding
        result = module(token_ids)
        assert isinstance(result, Tensor)
        return result

    def rope(
        self, like: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the head's rotary cosines and sines for ``position_ids [B, S]``.

        They have the dtype of ``like``. ``layer_type`` is the block's. None is what a head has
        unless its family says otherwise.
        """
        rotary = self.backbone.rotary_emb
        assert isinstance(rotary, nn.Module)
        if hasattr(rotary, "mrope_section"):
            # Multimodal positions (time, height, width) are all alike for text.
            position_ids = position_ids[None].expand(3, -1, -1)
        # Some models have a table for each type of layer.
        kind = {"layer_type": layer_type or head_layer_type(self.config)}
        cos, sin = rotary(like, position_ids, **(kind if self._has_typed_rope else {}))
        return cos, sin


def request_keys(prompts: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the numbers ``[B]`` by which balanced routing distinguishes requests.

    They are the first tokens of the prompts. So a sequence that is decoded anew is routed alike, by
    the audit's references too.
    """
    return torch.tensor([prompt[0] for prompt in prompts], device=device)


def _has_typed_rope(rotary: nn.Module) -> bool:
    """Return whether a model has a rotary table for each type of layer."""
    return "layer_type" in inspect.signature(rotary.forward).parameters


def _logits_rescale(config: PretrainedConfig) -> Callable[[Tensor], Tensor]:
    """Return what some models do to the logits after lm_head.

    Greedy decoding does not depend on it, and sampling does. Source: transformers' modules. One
    field is a divisor in some models and a factor in others.

    Raise ``UnsupportedModelError`` for a field whose meaning in this model is unknown.
    """
    text = config.get_text_config()
    scales = {name: getattr(text, name, None) for name in _LOGIT_SCALES}
    for name, scale in scales.items():
        if scale in (None, 1):
            continue
        meaning = _LOGIT_SCALES[name].get(config.model_type)
        if meaning == "divides":
            return lambda logits: logits / scale
        if meaning == "multiplies":
            return lambda logits: logits * scale
        raise UnsupportedModelError(
            f"MODEL: {config.model_type} rescales its logits ({name} {scale}) in a way that is not "
            "known here"
        )
    if cap := getattr(text, "final_logit_softcapping", None):
        return lambda logits: torch.tanh(logits / cap) * cap
    return lambda logits: logits


_GRANITE = (
    *("granite", "granite4_vision", "granite_docling", "granite_swa", "granitemoe"),
    *("granitemoe_swa", "granitemoehybrid", "granitemoeshared", "minicpm3"),
)
_LOGIT_SCALES: dict[str, dict[str, str]] = {
    "logits_scaling": dict.fromkeys(_GRANITE, "divides")
    | dict.fromkeys(("hyperclovax", "hyperclovax_vision_v2"), "multiplies"),
    "logit_scale": dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), "multiplies"),
    "output_multiplier": {},
}
"""What models of each type do with a field of the config, by field and type."""


@torch.no_grad()
def probe_kv_shapes(
    target: Target, head: DraftHead | None, *, keeps_latents: bool = True
) -> ShapeProbe:
    """Return the probe that has recorded each layer's KV or state shape.

    The shapes are read off one token's forward, so that no config field is trusted.
    ``keeps_latents``: latent attention keeps latents, not keys and values. Raise
    ``UnsupportedModelError`` if a layer has no attention that can be run.
    """
    probe = ShapeProbe(keeps_latents=keeps_latents)
    ids = torch.zeros(1, 1, dtype=torch.long, device=target.device)
    with probed_shapes(mixtures_of(target.backbone, head)) as shapes:
        hidden = target.forward(ids, ids, probe)
        for module in () if head is None else head.mtp_modules:
            embeds = target.embed(ids, module.embedding)
            rope = module.rope(target, embeds, ids)
            module(embeds, head.to_input(hidden), rope, ids, probe)  # type: ignore[union-attr]
    probe.expert_shapes = shapes
    check_windows(target.model, probe.windows)
    missing = set(range(target.num_layers)) - set(probe.kv_shapes) - set(probe.state_shapes)
    if missing:
        raise UnsupportedModelError(
            f"{type(target.model).__name__}: layers {sorted(missing)} have no attention of the "
            "usual kind, nor a gated delta net. Other recurrent targets are not supported"
        )
    return probe
