"""Apply transformers' renaming of stored tensors.

It is needed for the target's own tensors and for the head's block.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel


def stored_as_parameter(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Return the stored name of each of ``model``'s parameters outside its layers.

    transformers loads the stored tensor into that parameter.
    """
    rename = _renaming(model)
    return {rename(name): name for name in names if "layers." not in name}


def parameter_name(model: PreTrainedModel, module: nn.Module) -> str:
    """Return the name of the weight of ``module``, one of ``model``'s own modules."""
    (name,) = (name for name, part in model.named_modules() if part is module)
    return f"{name}.weight"


def block_renaming(
    model: PreTrainedModel, prefix: str, own: Mapping[str, str]
) -> Callable[[str], str]:
    """Return how transformers would rename a tensor of one more layer of ``model``.

    It is a function from what follows the layer's number to what follows it in the module.
    ``prefix`` is what the stored names of the layers begin with. ``own`` are names in the block
    that the layers have under others.
    """
    rename = _renaming(model)
    layer = f"layers.{model.config.get_text_config().num_hidden_layers}."

    def renamed(rest: str) -> str:
        module, dot, leaf = rest.partition(".")
        rest = f"{own.get(module, module)}{dot}{leaf}"
        return rename(f"{prefix}{layer}{rest}").partition(layer)[2] or rest

    return renamed


def _renaming(model: PreTrainedModel) -> Callable[[str], str]:
    # Imported here, because they are inner parts of transformers.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    state = model.state_dict()
    base = model.base_model_prefix
    return lambda name: rename_source_key(name, renamings, [], base, state)[0]
