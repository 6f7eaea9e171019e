"""Whether all of the target's tensors are there and all of its modules' have a place: of what was
loaded, or of what the files' headers state."""

import copy
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedModel

from cgbench.errors import ModelError
from cgbench.models.checkpoint import stored_tensors, tensor_files
from cgbench.models.request import LoadingPlan

# What older checkpoints store and transformers computes.
_DERIVED = (".inv_freq", ".masked_bias", ".attn.bias")


def check_headers(plan: LoadingPlan) -> None:
    """Have transformers place the target's tensors without storage, as it does when it loads them.

    Nothing is said of a preset, which has no files, nor of a GGUF file, whose tensors have other
    names. Raises ``ModelError`` as loading does.
    """
    if plan.request.preset is not None or plan.gguf_file is not None:
        return
    # Here, for they are inner parts of transformers, and loading does without them.
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    ref, dtype = plan.request.path, plan.request.dtype
    model = copy.deepcopy(plan.skeleton.target.model)
    stored = stored_tensors(tensor_files(ref)).values()
    tensors = {each.name: torch.empty(each.shape, dtype=dtype, device="meta") for each in stored}
    settings = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": "meta"},
        dtype=dtype,
        weight_mapping=get_model_conversion_mapping(model),
    )
    info, _ = convert_and_load_state_dict_in_model(model, tensors, settings)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    unfit = {name for name, *_ in info.mismatched_keys} | info.conversion_errors.keys()
    check_placed(ref, model, info.missing_keys - unfit, unfit, info.unexpected_keys)


def check_placed(
    ref: str | Path,
    model: PreTrainedModel,
    missing: Collection[str],
    unfit: Collection[str],
    unexpected: Collection[str],
) -> None:
    """Refuse a target without some of its tensors, with ``unfit`` ones, whose shape is another,
    or with tensors that belong to its own modules and have no place there: a bias that config.json
    denies, the scales of weights stored in fewer bits. Others are of a head or a tower.

    Raises ``ModelError``.
    """
    modules = {name for name, _ in model.named_modules()}
    unplaced = [
        name
        for name in unexpected
        if name.rpartition(".")[0] in modules and not name.endswith(_DERIVED)
    ]
    for names, problem in (
        (missing, "are missing"),
        (unfit, "are of another shape than config.json's"),
        (unplaced, "have no place in the model that config.json describes"),
    ):
        if names:
            among = ", ".join(sorted(names)[:3])
            raise ModelError(f"MODEL {ref}: {len(names)} tensors {problem}, {among} among them")
