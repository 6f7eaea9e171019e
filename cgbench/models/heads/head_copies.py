"""Find the embedding and the output matrix that a checkpoint stores with its head.

Most are copies of the target's. Step-3.x and some EAGLE heads have trained ones of their own, and
drafts made with the target's are then worth nothing. So each is compared with the target's, and
used if it differs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from cgbench.errors import MissingHeadError
from cgbench.models.checkpoint import StoredTensor, equal_values, stored_tensors
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head_names import parameter_name, stored_as_parameter
from cgbench.models.heads.head_search import HeadFolder
from cgbench.models.target import Target

# The modules of ``DraftHead``, and the names that checkpoints give their matrices.
_LEAVES = {
    "embedding": ("embed_tokens.weight",),
    "output": (
        *("lm_head.weight", "shared_head.head.weight", "shared_head.output.weight"),
        "shared_head.weight",
    ),
}
_WORDS = {"embedding": "embedding", "output": "output matrix"}
_FLOATS = ("F32", "F16", "BF16")


class CopyUse(StrEnum):
    """A copy use is what is done with a matrix that a checkpoint stores with its head."""

    OWN = "own"
    EQUAL = "equal copy"
    UNREAD = "left unread"


@dataclass(frozen=True, slots=True)
class HeadCopy:
    """A head copy is an embedding or an output matrix that is stored with a head.

    ``module`` is the module of ``DraftHead`` that it is for. ``name`` is its name in the file.
    """

    module: str
    name: str
    use: CopyUse

    @property
    def what(self) -> str:
        """Return the kind of matrix in words: embedding or output matrix."""
        return _WORDS[self.module]


@dataclass(frozen=True, slots=True)
class TargetMatrices:
    """This class holds where the target's embedding and output matrix are stored, and their shapes.

    Both are by module of ``DraftHead``. ``stored`` has a file and a name each. It is empty for a
    GGUF file, whose matrices are only there after they are decoded.
    """

    stored: Mapping[str, tuple[Path, str]]
    shapes: Mapping[str, tuple[int, ...]]


def target_matrices(target: Target, files: Mapping[str, Path] | None) -> TargetMatrices:
    """Return where the embedding and output matrix of ``target`` are stored.

    ``files`` maps the checkpoint's tensors to their files. It is None for a GGUF file.
    """
    model = target.model
    modules = {"embedding": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    shapes = {ours: tuple(module.weight.shape) for ours, module in modules.items()}
    if files is None:
        return TargetMatrices({}, shapes)
    by_parameter = stored_as_parameter(model, files)
    names = {
        ours: by_parameter.get(parameter_name(model, module)) for ours, module in modules.items()
    }
    # A tied output matrix is not stored.
    names["output"] = names["output"] or names["embedding"]
    stored = {ours: (files[name], name) for ours, name in names.items() if name is not None}
    return TargetMatrices(stored, shapes)


def find_copies(
    folder: HeadFolder,
    family: HeadFamily,
    plain: Mapping[str, str],
    target: TargetMatrices,
    dtype: torch.dtype,
    number: int,
) -> list[HeadCopy]:
    """Return every embedding and output matrix stored with module ``number`` of the head.

    Each is compared with the target's in ``dtype``. ``plain`` gives each tensor's name in the file.

    Raise ``MissingHeadError`` for one of another shape or an unknown type, or for two of a kind
    that differ from the target's.
    """
    names = {
        module: [plain[name] for name in _stored_with(folder, family, number, module, plain)]
        for module in _LEAVES
    }
    files = {name: folder.files[name] for each in names.values() for name in each}
    headers = stored_tensors(files)
    copies = [
        _compared(folder, family, module, headers[name], target, dtype)
        for module, each in names.items()
        for name in each
    ]
    for module, what in _WORDS.items():
        own = [copy.name for copy in copies if (copy.module, copy.use) == (module, CopyUse.OWN)]
        if len(own) > 1:
            raise MissingHeadError(
                f"{folder.ref}: the MTP head has more than one {what}: {', '.join(own)}"
            )
    return copies


def _stored_with(
    folder: HeadFolder,
    family: HeadFamily,
    number: int,
    module: str,
    plain: Mapping[str, str],
) -> Iterator[str]:
    for place in _places(folder, family, number):
        for leaf in _LEAVES[module]:
            if (name := f"{place}{leaf}") in plain:
                yield name


def _places(folder: HeadFolder, family: HeadFamily, number: int) -> list[str]:
    """Return the prefixes of the names of the head's own matrices.

    They are those of its block and of what its projection is in. In a folder that holds no target
    it is also that of the model itself.
    """
    prefixes = family.prefixes(number)
    parents = [f"{prefixes['block']}.", prefixes["proj"].rpartition(".")[0] + "."]
    if folder.is_apart and not _holds_target(folder, prefixes["block"]):
        parents += folder.prefixes
    return list(dict.fromkeys(place for place in parents if place != "."))


def _holds_target(folder: HeadFolder, block: str) -> bool:
    """Return whether there are layers besides the head's.

    The embedding and lm_head are then theirs.
    """
    return any(
        f"{prefix}layers.0." != f"{block}."
        and any(name.startswith(f"{prefix}layers.0.") for name in folder.files)
        for prefix in folder.prefixes
    )


def _compared(
    folder: HeadFolder,
    family: HeadFamily,
    module: str,
    stored: StoredTensor,
    target: TargetMatrices,
    dtype: torch.dtype,
) -> HeadCopy:
    if stored.name.endswith(family.unread):
        return HeadCopy(module, stored.name, CopyUse.UNREAD)
    shape = target.shapes[module]
    if stored.shape != shape:
        raise MissingHeadError(
            f"{folder.ref}: the MTP head's {_WORDS[module]} {stored.name} is {stored.shape}, not "
            f"{shape} as the target's: its vocabulary or hidden size is another"
        )
    if stored.dtype not in _FLOATS:
        raise MissingHeadError(
            f"{folder.ref}: the MTP head is stored as {stored.dtype} ({stored.name}). "
            "Give --head with a bfloat16 or float16 head"
        )
    its = target.stored.get(module)
    is_equal = its is not None and equal_values(
        (folder.files[stored.name], stored.name), its, dtype
    )
    return HeadCopy(module, stored.name, CopyUse.EQUAL if is_equal else CopyUse.OWN)
