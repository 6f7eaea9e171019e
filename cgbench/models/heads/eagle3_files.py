"""Find an EAGLE-3 head in the files of a folder, and its map from draft tokens to the target's.

The public layouts differ in the names of the layer, ``midlayer`` or ``layers.0``, and in a prefix
``model.``. ``d2t`` holds an offset for each draft token: token i is the target's ``i + d2t[i]``.
``t2d`` states the same and is left unread, as by vLLM and SGLang.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cgbench.errors import MissingHeadError
from cgbench.inputs import JsonObject, shown
from cgbench.models.checkpoint import (
    StoredTensor,
    equal_values,
    raw_config,
    read_tensor,
    stored_tensors,
)
from cgbench.models.heads.eagle3_config import Eagle3Form, read_form
from cgbench.models.heads.families import EAGLE3, HeadFamily
from cgbench.models.heads.head_copies import CopyUse, HeadCopy, TargetMatrices
from cgbench.models.heads.head_files import HeadFiles, num_used
from cgbench.models.heads.head_search import HeadFolder
from cgbench.models.target import Target

_LAYERS = ("midlayer", "layers.0")
_PREFIXES = ("", "model.")
_MAP, _INVERSE = "d2t", "t2d"
_OUTPUT, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_UNREAD = (_INVERSE, "rotary_emb.inv_freq")
_OFFSETS = ("I64", "I32")


def find_eagle3(
    folder: HeadFolder,
    target: Target,
    matrices: TargetMatrices,
    dtype: torch.dtype,
    family: str | None = None,
    most_modules: int | None = None,
) -> HeadFiles:
    """Return the EAGLE-3 head for ``target`` that ``folder`` holds.

    ``head_files.find_head`` states what the arguments are. Raise its errors.
    """
    signs = eagle3_signs(folder.files)
    if not signs:
        looked_for = ", ".join(f"{name}.hidden_norm.weight" for name in _layer_names())
        raise MissingHeadError(
            f"{folder.ref}: no EAGLE-3 head tensors (looked for {looked_for}). "
            "Give --head PATH, or --spec-tokens 0 to measure without speculation"
        )
    check_apart(folder, f"an EAGLE-3 head ({', '.join(signs[:3])})", EAGLE3, family)
    num_used(1, most_modules)
    return _find(folder, target, matrices, dtype)


def check_apart(folder: HeadFolder, what: str, found: HeadFamily, stated: str | None) -> None:
    """Check that a head of family ``found`` is the one asked for, in a folder of its own.

    ``what`` is the head in words, and ``stated`` the family that was asked for. Raise
    ``MissingHeadError`` if it is another, or if ``folder`` is MODEL's.
    """
    if stated not in (None, found.name):
        raise MissingHeadError(f"{folder.ref}: holds {what}, and not one of family {stated}")
    if not folder.is_apart:
        raise MissingHeadError(
            f"{folder.ref}: holds {what}, which belongs to another target. Give that target as "
            "MODEL, and this folder as --head"
        )


def eagle3_signs(names: Iterable[str]) -> list[str]:
    """Return the names that EAGLE-3 heads alone have: a map between vocabularies, a middle layer,
    a norm of the target's state."""
    norms = {f"{layer}.hidden_norm.weight" for layer in _layer_names()}
    middle = tuple(f"{prefix}midlayer." for prefix in _PREFIXES)
    known = {_MAP, _INVERSE} | norms
    return sorted(name for name in names if name in known or name.startswith(middle))


def _layer_names() -> list[str]:
    return [f"{prefix}{layer}" for prefix in _PREFIXES for layer in _LAYERS]


def _find(
    folder: HeadFolder, target: Target, matrices: TargetMatrices, dtype: torch.dtype
) -> HeadFiles:
    raw = raw_config(folder.ref)
    form = read_form(folder.ref, raw, target.num_layers, target.hidden_size)
    family = _named_as_stored(folder)
    headers = stored_tensors(folder.files)
    _check_known(folder.ref, family, headers)
    form = replace(form, target_ids=_target_ids(folder, headers, raw, target))
    copies = (
        *_embedding_copy(folder, headers, form, target, matrices, dtype),
        *_output_copy(folder, headers, form, target, matrices, dtype),
    )
    stored_as = {name: name for name in folder.files}
    return HeadFiles(family, folder.files, stored_as, 1, 0, (copies,), form)


def _named_as_stored(folder: HeadFolder) -> HeadFamily:
    """Return the family with the names that the head has in ``folder``."""
    norms = [name for name in _layer_names() if f"{name}.hidden_norm.weight" in folder.files]
    if not norms:
        names = " or ".join(f"{name}.hidden_norm.weight" for name in _LAYERS)
        raise MissingHeadError(f"{folder.ref}: the EAGLE-3 head lacks {names}")
    found = {"block": norms[0]}
    for module in ("proj", "out_norm"):
        plain = EAGLE3.names[module]
        prefixed = f"model.{plain}"
        found[module] = prefixed if f"{prefixed}.weight" in folder.files else plain
    return replace(EAGLE3, names=found)


def _check_known(ref: str, family: HeadFamily, headers: Mapping[str, StoredTensor]) -> None:
    """Refuse tensors that no EAGLE-3 head has that can be run here, such as EAGLE-3.1's norms."""
    prefixes = tuple(f"{prefix}." for prefix in family.names.values())
    known = {_MAP, *_both(_OUTPUT), *_both(_EMBEDDING)}
    unknown = sorted(
        name
        for name in headers
        if name not in known and not name.startswith(prefixes) and not name.endswith(_UNREAD)
    )
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise MissingHeadError(
            f"{ref}: has {', '.join(unknown[:3])}{more}, which is no part of an EAGLE-3 head that "
            "can be run here"
        )


def _both(name: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{name}" for prefix in _PREFIXES)


def _stored(headers: Mapping[str, StoredTensor], name: str) -> StoredTensor | None:
    return next((headers[each] for each in _both(name) if each in headers), None)


def _target_ids(
    folder: HeadFolder, headers: Mapping[str, StoredTensor], raw: JsonObject, target: Target
) -> Tensor | None:
    """Return the target's token of each draft token, or None if all are the target's.

    Raise ``MissingHeadError`` for a map of another shape, or out of the target's vocabulary.
    """
    ref, output = folder.ref, _stored(headers, _OUTPUT)
    stated = raw.get("draft_vocab_size")
    if stated is not None and (type(stated) is not int or stated < 1):
        raise MissingHeadError(
            f"{ref}: config.json: draft_vocab_size {shown(stated)}: must be a whole number above 0"
        )
    size = stated or (target.vocab_size if output is None else output.shape[0])
    whose = "config.json states" if stated else f"{_OUTPUT} has rows"
    if _MAP not in headers:
        if size != target.vocab_size:
            raise MissingHeadError(
                f"{ref}: the EAGLE-3 head lacks d2t, and its {size} draft tokens are not the "
                f"target's {target.vocab_size}"
            )
        return None
    stored = headers[_MAP]
    if stored.shape != (size,) or stored.dtype not in _OFFSETS:
        raise MissingHeadError(
            f"{ref}: d2t is {stored.dtype} {stored.shape}, not whole numbers of shape {(size,)}: "
            f"one offset for each draft token that {whose}"
        )
    ids = torch.arange(size) + read_tensor(folder.files[_MAP], _MAP).long()
    most = min(target.vocab_size, target.last_token + 1)
    outside = ((ids < 0) | (ids >= most)).nonzero().flatten()
    if len(outside):
        token = int(outside[0])
        raise MissingHeadError(
            f"{ref}: d2t makes draft token {token} the target's {int(ids[token])}, out of its "
            f"vocabulary of {most}: token i is the target's i + d2t[i]"
        )
    if len(ids.unique()) < size:
        raise MissingHeadError(f"{ref}: d2t makes two draft tokens one token of the target's")
    return ids


def _embedding_copy(
    folder: HeadFolder,
    headers: Mapping[str, StoredTensor],
    form: Eagle3Form,
    target: Target,
    matrices: TargetMatrices,
    dtype: torch.dtype,
) -> tuple[HeadCopy, ...]:
    """Return the head's embedding. It is an equal copy only of one that does nothing but look up.

    Gemma's scales what it looks up, and an EAGLE-3 head's does not.
    """
    stored = _stored(headers, _EMBEDDING)
    size = form.config.hidden_size
    is_plain = type(target.model.get_input_embeddings()) is nn.Embedding
    if stored is None:
        if size == target.hidden_size and is_plain:
            return ()
        why = (
            f"the target's embedding is {target.hidden_size} wide, not {size}"
            if is_plain
            else "the target's embedding scales what it looks up"
        )
        raise MissingHeadError(f"{folder.ref}: the EAGLE-3 head lacks {_EMBEDDING}: {why}")
    is_equal = is_plain and _is_equal(folder, stored, matrices.stored.get("embedding"), dtype)
    return (HeadCopy("embedding", stored.name, CopyUse.EQUAL if is_equal else CopyUse.OWN),)


def _output_copy(
    folder: HeadFolder,
    headers: Mapping[str, StoredTensor],
    form: Eagle3Form,
    target: Target,
    matrices: TargetMatrices,
    dtype: torch.dtype,
) -> tuple[HeadCopy, ...]:
    stored = _stored(headers, _OUTPUT)
    is_whole = form.target_ids is None and form.config.hidden_size == target.hidden_size
    if stored is None:
        if is_whole:
            return ()
        raise MissingHeadError(f"{folder.ref}: the EAGLE-3 head lacks {_OUTPUT}")
    is_equal = is_whole and _is_equal(folder, stored, matrices.stored.get("output"), dtype)
    return (HeadCopy("output", stored.name, CopyUse.EQUAL if is_equal else CopyUse.OWN),)


def _is_equal(
    folder: HeadFolder,
    stored: StoredTensor,
    its: tuple[Path, str] | None,
    dtype: torch.dtype,
) -> bool:
    return its is not None and equal_values((folder.files[stored.name], stored.name), its, dtype)
