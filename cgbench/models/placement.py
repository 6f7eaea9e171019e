"""Check that the target's tensors are all there and that each has a place in the model.

The check is made of what was loaded, or of what the files' headers state.
"""

import copy
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cgbench.errors import ModelError
from cgbench.models.checkpoint import StoredTensor, stored_tensors, tensor_files
from cgbench.models.loading_plan import LoadingPlan
from cgbench.models.quantised.kv_format import is_kv_scale
from cgbench.models.quantised.scaled_files import E4M3
from cgbench.models.quantised.scaled_loading import convert

# Older checkpoints store these, and transformers computes them.
_DERIVED = (".inv_freq", ".masked_bias", ".attn.bias")


# The types of weights that have no scales.
_PLAIN_TYPES = {"F64", "F32", "F16", "BF16"}


def check_headers(plan: LoadingPlan) -> None:
    """Check the target's tensors by their headers, before any weight is loaded.

    transformers places the tensors without storage, as it does when it loads them. Presets are not
    checked, because they have no files. GGUF files are not, because their tensors have other names.
    Raise ``ModelError`` as loading does.
    """
    if not _has_headers(plan):
        return
    model, info = _place(plan, _stored(plan))
    unfit = {name for name, *_ in info.mismatched_keys} | info.conversion_errors.keys()
    missing = info.missing_keys - unfit
    check_placed(plan.request.path, model, missing, unfit, info.unexpected_keys)
    check_types(plan)


def check_types(plan: LoadingPlan) -> None:
    """Check that no weight of the target is stored as integers or in 8 bits without a scale.

    Such weights would be other numbers, and transformers would cast them in silence. The target
    needs those that it lacks when it is placed without them. So tensors of a head or a tower are
    left alone, and so are integers that stay integers.

    Raise ``ModelError`` with the first such weight.
    """
    if not _has_headers(plan):
        return
    stored = _stored(plan)
    known = _PLAIN_TYPES if plan.scaled is None else _PLAIN_TYPES | {E4M3}
    odd = [tensor for tensor in stored if tensor.dtype not in known]
    if not odd:
        return
    plain = [tensor for tensor in stored if tensor.dtype in known]
    if lacked := _lacked_floats(plan, plain) - _lacked_floats(plan, stored):
        first = _first_of(odd, lacked)
        raise ModelError(
            f"MODEL {Path(plan.request.path, first.file)}: {first.name} is stored as "
            f"{first.dtype}, as {len(odd)} tensors are: must be BF16, F16 or F32, or "
            f"{E4M3} with scales and a quantization_config"
        )


def _first_of(odd: list[StoredTensor], lacked: Collection[str]) -> StoredTensor:
    """Return the first tensor that has the name of a lacked one, else the first.

    Experts have other names before they are fused.
    """
    named = (each for each in odd if any(each.name.endswith(name) for name in lacked))
    return next(named, odd[0])


def _has_headers(plan: LoadingPlan) -> bool:
    return plan.request.preset is None and plan.gguf_file is None


def _stored(plan: LoadingPlan) -> list[StoredTensor]:
    """Return the target's stored tensors, without the scales of FP8 weights."""
    stored = stored_tensors(tensor_files(plan.request.path))
    names = stored if plan.scaled is None else plan.scaled.rest(stored)
    return [stored[name] for name in names]


def _lacked_floats(plan: LoadingPlan, stored: Iterable[StoredTensor]) -> set[str]:
    """Return the target's floating tensors that the ``stored`` ones do not make."""
    model, info = _place(plan, stored)
    tensors = model.state_dict()
    return {name for name in info.missing_keys if tensors[name].is_floating_point()}


def _place(plan: LoadingPlan, stored: Iterable[StoredTensor]) -> tuple[PreTrainedModel, Any]:
    """Place the target's tensors on the meta device.

    Return the model, and transformers' report on them.
    """
    dtype = plan.request.dtype
    model = copy.deepcopy(plan.skeleton.target.model)
    tensors = {each.name: torch.empty(each.shape, dtype=dtype, device="meta") for each in stored}
    info = convert(model, tensors, dtype)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    return model, info


def check_placed(
    ref: str | Path,
    model: PreTrainedModel,
    missing: Collection[str],
    unfit: Collection[str],
    unexpected: Collection[str],
) -> None:
    """Check that a target has all its tensors, in the right shapes, and no stray ones.

    ``missing`` tensors are not there, and ``unfit`` ones have another shape. ``unexpected`` tensors
    are refused if they belong to the target's own modules and have no place there. Examples are a
    bias that config.json denies, and the scales of weights in fewer bits. Other unexpected tensors
    belong to a head or a tower.

    Raise ``ModelError`` if the check fails.
    """
    modules = {name for name, _ in model.named_modules()}
    unplaced = [
        name
        for name in unexpected
        if name.rpartition(".")[0] in modules
        and not name.endswith(_DERIVED)
        and not is_kv_scale(name)
    ]
    for names, problem in (
        (missing, "are missing"),
        (unfit, "are of another shape than config.json's"),
        (unplaced, "have no place in the model that config.json describes"),
    ):
        if names:
            among = ", ".join(sorted(names)[:3])
            raise ModelError(f"MODEL {ref}: {len(names)} tensors {problem}, {among} among them")
