"""Compile the decode forwards with ``torch.compile``, a layer at a time.

Equal layers share one compiled form, so compiling costs seconds whatever their number. Sizes of a
batch are symbols in a form, so one form serves all buckets. There are two exceptions: one request
is a form of its own, and so is one row a request.

The operations between a layer's products become a few kernels: rotary, and norms with the residual
before them. Operators of this room hide the rest from the compiler. They are attention, a gated
delta net's recurrence, and products with their activation or residual.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch.fx.experimental._config as shape_config
from torch import nn

from cgbench.compile.fusion import compile_layer
from cgbench.compile.mixtures import use_mixture_operators
from cgbench.compile.operators import OperatorCall, under_way, use_linear_operator
from cgbench.engine.calls import Decode
from cgbench.models.heads.head import DraftHead
from cgbench.models.target import Target

# A kind of layer has four forms: for one request or more, with one row a request or more.
MOST_FORMS = 64

Forward = Callable[..., Any]


def compile_forwards(target: Target, head: DraftHead | None) -> None:
    """Compile what decode steps run of the target and its head, in place.

    Prefill runs as before, and so does everything else that calls the model. A form is compiled at
    the first step that needs it. torch keeps its kernels on disk.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(MOST_FORMS, config.recompile_limit)
    config.accumulated_recompile_limit = max(4 * MOST_FORMS, config.accumulated_recompile_limit)
    # Balanced routing is a hook. A form made without it must not serve a model that has it.
    config.skip_nnmodule_hook_guards = False
    # Sizes that happen to be equal at one step are not at the next.
    shape_config.use_duck_shape = False
    embedding = target.model.get_output_embeddings()
    for module in (target.backbone, head, embedding):
        if module is not None:
            use_linear_operator(module)
            use_mixture_operators(module)
    for layer in _layers(target, head):
        _number_attention(layer)
        _compile_layer(layer)
    for module in _small_modules(target, head):
        module.forward = _compiled(module.forward)


def _layers(target: Target, head: DraftHead | None) -> list[nn.Module]:
    layers = target.backbone.layers
    assert isinstance(layers, nn.ModuleList)
    modules = () if head is None else head.mtp_modules
    return [*layers, *(layer for module in modules for layer in module.layers)]


def _compiled(function: Forward) -> Forward:
    compiled: Forward = torch.compile(function, dynamic=True, fullgraph=True, backend=compile_layer)
    return compiled


def _number_attention(layer: nn.Module) -> None:
    """Give every module of a layer its number as a tensor too: see ``operators.attend``."""
    for part in layer.modules():
        if isinstance(getattr(part, "layer_idx", None), int):
            part.layer_number = torch.tensor(part.layer_idx)


def _compile_layer(layer: nn.Module) -> None:
    """Make decode steps run the layer's compiled form, and everything else its own."""
    plain, compiled = layer.forward, _compiled(layer.forward)
    calls = {keeps: OperatorCall(keeps_latents=keeps) for keeps in (False, True)}

    def forward(*args: Any, **kwargs: Any) -> Any:
        attention_call = kwargs.get("attention_call")
        if not isinstance(attention_call, Decode) or not attention_call.runs_compiled:
            return plain(*args, **kwargs)
        # Not all callers give the arguments that are None. They would make two forms of one.
        given = {name: value for name, value in kwargs.items() if value is not None}
        call = calls[attention_call.keeps_latents]
        with under_way(attention_call):
            return compiled(*args, **given | {"attention_call": call})

    layer.forward = forward


def _small_modules(target: Target, head: DraftHead | None) -> list[nn.Module]:
    """Return what runs between the layers: final norm, rotary tables, the head's own parts."""
    modules = [target.backbone.norm, target.backbone.rotary_emb]
    for each in () if head is None else head.mtp_modules:
        modules += [each.embed_norm, each.hidden_norm, each.out_norm]
        own = (getattr(each, name, None) for name in ("rotary", "context_keys"))
        modules += [module for module in own if module is not None]
    return [
        module
        for module in modules
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity)
    ]
