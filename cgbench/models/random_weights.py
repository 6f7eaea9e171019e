"""Draw the random weights of a preset by transformers' own initialisation, a layer at a time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cgbench.models.experts import take_over_loops
from cgbench.models.kept_types import keep_types
from cgbench.models.loading_plan import LoadingPlan
from cgbench.models.quantised.scaled_presets import quantise_parameters
from cgbench.models.support import auto_class_for

Keep = Callable[[str, Tensor], Tensor]
"""A ``Keep`` is called with a parameter's name and its whole tensor, and returns what is kept."""

KeepQuantised = Callable[[PreTrainedModel, list[str]], None]
"""A ``KeepQuantised`` is called with a model and its parameters that are FP8 by now. It keeps what
is kept, in place."""

DEFAULT_DEVIATION = 0.02
"""transformers draws with this standard deviation if a config states none."""

Unit = list[tuple[str, nn.Module]]
"""A unit is a list of modules by name that get their storage together, children before parents."""


def _whole(_: str, tensor: Tensor) -> Tensor:
    return tensor


def random_target(
    plan: LoadingPlan,
    keep: Keep = _whole,
    keep_quantised: KeepQuantised | None = None,
    **implementations: str,
) -> PreTrainedModel:
    """Return the target of a preset's plan, with random weights.

    The weights do not depend on the implementation that runs them. Every parameter is drawn whole
    and handed to ``keep``. FP8 weights are quantised when their layer is drawn, so no whole copy is
    ever there, and ``keep_quantised`` is called then. So the ranks of a divided model hold parts of
    the same weights as one process. They never hold more than one layer whole at once.
    """
    request = plan.request
    torch.manual_seed(request.seed)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class_for(plan.config).from_config(
            plan.config, dtype=request.dtype, **implementations
        )
    keep_types(model, request.dtype)
    take_over_loops(model, request.device, request.dtype)
    scaled = plan.skeleton.scaled
    for unit in _units(model):
        _draw(unit, model, request.device, keep)
        names = (f"{name}.{leaf}" for name, module in unit for leaf in module._parameters)
        quantised = [name for name in names if name in scaled]
        quantise_parameters(model, quantised)
        if keep_quantised is not None:
            keep_quantised(model, quantised)
    model.tie_weights()
    return model


def draw_head(head: nn.Module, target: PreTrainedModel, device: torch.device) -> None:
    """Give a draft ``head`` on the meta device its storage and weights.

    The weights are drawn as ``target`` draws those of its own modules.
    """
    _draw(_children_first("", head), target, device, _whole)


def _units(model: PreTrainedModel) -> Iterator[Unit]:
    """Yield each decoder layer, then all the rest."""
    layers = model.get_decoder().layers
    names = {id(module): name for name, module in model.named_modules()}
    inside = {id(part) for layer in layers for part in layer.modules()}
    for layer in layers:
        yield _children_first(names[id(layer)], layer)
    yield [each for each in _children_first("", model) if id(each[1]) not in inside]


def _children_first(prefix: str, module: nn.Module) -> Unit:
    """Return the modules in transformers' own order.

    A parent may overwrite its children's tensors, so it comes after them.
    """
    return [*reversed([*module.named_modules(prefix=prefix)])]


@torch.no_grad()
def _draw(unit: Unit, model: PreTrainedModel, device: torch.device, keep: Keep) -> None:
    for _, module in unit:
        _allocate(module, device)
    for _, module in unit:
        model._init_weights(module)
    for name, module in unit:
        _draw_unwritten(module, _deviation(model))
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                kept = keep(f"{name}.{leaf}", parameter.detach())
                module._parameters[leaf] = nn.Parameter(kept, requires_grad=False)


def _allocate(module: nn.Module, device: torch.device) -> None:
    """Give the module's own tensors storage.

    It is filled with NaN, to show the tensors that nobody writes.
    """
    for tensors in (module._parameters, module._buffers):
        for leaf, tensor in tensors.items():
            if tensor is None:
                continue
            empty = torch.empty_like(tensor, device=device)
            if empty.is_floating_point():
                empty.fill_(torch.nan)
            tensors[leaf] = _like(tensor, empty)


def _like(tensor: Tensor, empty: Tensor) -> Any:
    return nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty


def _draw_unwritten(module: nn.Module, deviation: float) -> None:
    """Draw the tensors that no module of the model initialises.

    ERNIE's router in transformers 5.17 has some. Matrices become normal, biases zero, other vectors
    one.
    """
    for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None or not tensor.is_floating_point() or _is_written(tensor):
            continue
        if tensor.dim() > 1:
            tensor.normal_(std=deviation)
        else:
            tensor.fill_(0.0 if leaf.endswith("bias") else 1.0)


def _is_written(tensor: Tensor) -> bool:
    # A sum is NaN if any number is, and needs no second tensor of that size.
    return not tensor.sum(dtype=torch.float32).isnan()


def _deviation(model: PreTrainedModel) -> float:
    return float(getattr(model.config.get_text_config(), "initializer_range", DEFAULT_DEVIATION))
