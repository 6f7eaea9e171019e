"""Find a draft head in a checkpoint's files, check it, and read its tensors."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Size, Tensor

from cgbench.errors import BadInputError, MissingHeadError
from cgbench.kernels.fp8.block_scales import row_blocks_of
from cgbench.models.checkpoint import StoredTensor, raw_config, read_tensor, stored_tensors
from cgbench.models.experts import expert_parts, fuse, num_fused
from cgbench.models.heads.dflash_config import DFlashForm
from cgbench.models.heads.eagle3_config import Eagle3Form
from cgbench.models.heads.families import HeadFamily
from cgbench.models.heads.head import DraftHead, HeadForm, module_prefix
from cgbench.models.heads.head_copies import (
    CopyUse,
    HeadCopy,
    TargetMatrices,
    find_copies,
)
from cgbench.models.heads.head_names import block_renaming
from cgbench.models.heads.head_search import HeadFolder, find_family, plain_names
from cgbench.models.quantised.scaled_files import (
    E4M3,
    SCALE_ENDINGS,
    UNUSED,
    check_codes,
    check_scale,
    normal_shape,
    read_scale,
)
from cgbench.models.quantised.scaled_modules import set_scales
from cgbench.models.quantised.scheme import FIELD, Fp8Scheme, scheme_of
from cgbench.models.target import Target
from cgbench.request.choices import OutputNorm

# What is stored beside quantised weights, and the types of plain ones.
_SCALES = re.compile(r"(weight_scale(_inv)?|qweight|qzeros|scales|weight_packed|g_idx)$")
_FLOATS = ("F32", "F16", "BF16")
# Older checkpoints store this, and transformers computes it.
_DERIVED = "rotary_emb.inv_freq"

# How many names an error spells out before it counts the rest.
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class HeadFiles:
    """This class describes a head that was found in a checkpoint, and where its tensors are.

    ``family`` has the names that the head has there. ``files`` is keyed by the names that
    transformers would give the tensors, without the family's infix. ``stored_as`` gives the name in
    the file. ``num_stored`` counts the checkpoint's MTP modules. ``copies`` are the embeddings and
    output matrices stored with each of the modules that are used. ``eagle3`` is the form of an
    EAGLE-3 head, and ``dflash`` that of a DFlash drafter. They are None for any other.
    """

    family: HeadFamily
    files: Mapping[str, Path]
    stored_as: Mapping[str, str]
    num_stored: int
    first_number: int
    copies: tuple[tuple[HeadCopy, ...], ...]
    eagle3: Eagle3Form | None = None
    dflash: DFlashForm | None = None

    @property
    def num_modules(self) -> int:
        """Return how many modules are used."""
        return len(self.copies)

    @property
    def forms(self) -> list[HeadForm]:
        """Return what each module of this head has and others of its family may not have."""
        return [self._form(place) for place in range(self.num_modules)]

    def _form(self, place: int) -> HeadForm:
        number, own = self.first_number + place, self._own_of(place)
        block = f"{self.family.prefixes(number)['block']}."
        in_block = [name for name in self.files if name.startswith(block)]
        return HeadForm(
            proj_bias=self.family.tensor_name("proj.bias", number) in self.files,
            own_embedding="embedding.weight" in own,
            own_output="output.weight" in own,
            dense=not any(".experts." in name for name in in_block),
            eagle3=self.eagle3,
            dflash=self.dflash,
        )

    @property
    def scales(self) -> dict[str, str]:
        """Return the names of weights that are stored with scales, and their scales' names."""
        return {
            name: scale
            for name in self.files
            for ending in SCALE_ENDINGS
            if (scale := f"{name}{ending}") in self.files
        }

    @property
    def own(self) -> dict[str, str]:
        """Return the head's own matrices that replace the target's.

        The keys are tensors of ``DraftHead``, and the values their names in ``files``.
        """
        return {
            module_prefix(place) + ours: name
            for place in range(self.num_modules)
            for ours, name in self._own_of(place).items()
        }

    def _own_of(self, place: int) -> dict[str, str]:
        own = {copy.name: copy for copy in self.copies[place] if copy.use is CopyUse.OWN}
        return {
            f"{own[stored].module}.weight": name
            for name, stored in self.stored_as.items()
            if stored in own
        }


def find_head(
    folder: HeadFolder,
    target: Target,
    matrices: TargetMatrices,
    dtype: torch.dtype,
    family: str | None = None,
    most_modules: int | None = None,
) -> HeadFiles:
    """Return the head for ``target`` that ``folder`` holds.

    ``family`` is the name of its family if that is stated. Its own matrices are compared with the
    target's ``matrices``, in ``dtype``. At most ``most_modules`` of its modules are used.
    Raise ``MissingHeadError`` with what was looked for, or with what does not fit.
    """
    found = find_family(folder, target.config, family)
    stored_as = plain_names(folder.files, found)
    first = found.first_number(target.num_layers)
    num_stored = _num_modules(folder, found, first, stored_as)
    numbers = range(first, first + num_used(num_stored, most_modules))
    copies = [
        tuple(find_copies(folder, found, stored_as, matrices, dtype, number)) for number in numbers
    ]
    blocks = [f"{found.prefixes(number)['block']}." for number in numbers]
    rename = block_renaming(target.model, _layer_prefix(folder, blocks[0]), found.renamed)
    stored_as = {_renamed(name, blocks, rename): stored for name, stored in stored_as.items()}
    files = {name: folder.files[stored] for name, stored in stored_as.items()}
    return HeadFiles(found, files, stored_as, num_stored, first, tuple(copies))


def num_used(num_stored: int, most: int | None) -> int:
    """Return how many of a head's ``num_stored`` modules draft.

    ``most`` is what ``--mtp-modules`` states. Raise ``BadInputError`` if the head has fewer.
    """
    if most is not None and most > num_stored:
        modules = "1 module" if num_stored == 1 else f"{num_stored} modules"
        raise BadInputError(f"--mtp-modules {most}: the head has {modules}")
    return num_stored if most is None else most


def _num_modules(
    folder: HeadFolder, family: HeadFamily, first: int, stored_as: Mapping[str, str]
) -> int:
    """Count the blocks from number ``first`` on, each of them a module."""
    number = first
    while any(name.startswith(f"{family.prefixes(number)['block']}.") for name in stored_as):
        number += 1
        if "{i}" not in family.names["block"]:
            break
    if family.has_one_module and number - first > 1:
        raise MissingHeadError(
            f"{folder.ref}: the head has {number - first} layers "
            f"({family.prefixes(number - 1)['block']}), and heads of family {family.name} can be "
            "run with one alone"
        )
    return max(1, number - first)


def _layer_prefix(folder: HeadFolder, block: str) -> str:
    """Return the prefix of the names of the target's layers."""
    for prefix in folder.prefixes:
        layer = f"{prefix}layers.0."
        if layer != block and any(name.startswith(layer) for name in folder.files):
            return prefix
    return "model."


def _renamed(name: str, blocks: Iterable[str], rename: Callable[[str], str]) -> str:
    for block in blocks:
        rest = name.removeprefix(block)
        if rest != name:
            return block + rename(rest)
    return name


def head_tensors(head: DraftHead, found: HeadFiles) -> dict[str, dict[str, Size]]:
    """Return the checkpoint's tensors that make each of the head's tensors, with their shapes.

    Fused experts are taken as they are if the checkpoint fuses them too. Rows of the target's
    output matrix are no tensors of the head's files.
    """
    parts: dict[str, dict[str, Size]] = {}
    for ours, tensor in head.state_dict().items():
        if head.is_of_target(ours):
            continue
        theirs = found.own.get(ours) or head.tensor_name(ours)
        split = None if theirs in found.files else expert_parts(theirs, tensor.shape)
        parts[ours] = split or {theirs: tensor.shape}
    return parts


def head_scheme(ref: str, kind: str) -> Fp8Scheme | None:
    """Return the FP8 scheme of the head found at ``ref``, or None for plain weights.

    ``kind`` is the head's name. Raise ``UnsupportedModelError`` for any other quantisation.
    """
    stated = raw_config(ref).get(FIELD)
    return None if stated is None else scheme_of(stated, f"the {kind}")


def check_head(ref: str, head: DraftHead, found: HeadFiles) -> None:
    """Check the files' names and headers against the needs of ``head``. No weight is read.

    Raise ``MissingHeadError`` with the tensors that are missing, quantised, of another shape, or of
    another target. ``ref`` is where the head was found.
    """
    kind = head.family.kind
    scheme = head_scheme(ref, kind)
    parts = head_tensors(head, found)
    expected = _expected(parts)
    _check_names(ref, head, found, set(expected), are_scales_known=scheme is not None)
    stored = _headers(found, expected)
    scaled = {} if scheme is None else _scaled(found, stored)
    _check_headers(ref, kind, {name: stored[name] for name in expected.keys() - scaled.keys()})
    _check_sizes(ref, kind, stored, expected)
    if scheme is not None:
        scales = _headers(found, scaled.values())
        for name, scale in scaled.items():
            check_scale(ref, stored[name], scales[scale], scheme)
    for names in parts.values():
        if 0 < len(names.keys() & scaled.keys()) < len(names):
            odd = sorted(names.keys() - scaled.keys())
            raise MissingHeadError(f"{ref}: the {kind}'s experts are FP8, but not {_listed(odd)}")


def _headers(found: HeadFiles, names: Iterable[str]) -> dict[str, StoredTensor]:
    """Return the headers of tensors, by their names in ``found``."""
    names = [*names]
    stored = stored_tensors({found.stored_as[name]: found.files[name] for name in names})
    return {name: stored[found.stored_as[name]] for name in names}


def _scaled(found: HeadFiles, stored: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Return the FP8 weights among ``stored``, and their scales' names."""
    scales = found.scales
    is_scaled = (name for name, each in stored.items() if each.dtype == E4M3)
    return {name: scales[name] for name in is_scaled if name in scales}


def scaled_shapes(head: DraftHead, found: HeadFiles) -> dict[str, Size]:
    """Return the head's FP8 parameters and their scales' shapes."""
    if not found.scales:
        return {}
    shapes = {ours: tensor.shape for ours, tensor in head.state_dict().items()}
    found_shapes: dict[str, Size] = {}
    for ours, parts in head_tensors(head, found).items():
        scaled = _scaled(found, _headers(found, parts))
        if scaled:
            weights, scales = _headers(found, parts), _headers(found, scaled.values())
            grids = [
                normal_shape(scales[scale].shape, weights[name].shape)
                for name, scale in scaled.items()
            ]
            rows = sum(grid[-2] for grid in grids)
            found_shapes[ours] = (
                Size(grids[0])
                if len(parts) == 1
                else Size((shapes[ours][0], rows // shapes[ours][0], grids[0][-1]))
            )
    return found_shapes


def read_head(head: DraftHead, found: HeadFiles) -> None:
    """Fill ``head`` from files that have passed ``check_head``.

    FP8 weights stay as they are. Raise ``ModelError`` for one that holds NaN.
    """
    shapes = {ours: tensor.shape for ours, tensor in head.state_dict().items()}
    scaled = scaled_shapes(head, found)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, tuple[Tensor, Tensor]] = {}
    for ours, parts in head_tensors(head, found).items():
        read = [read_tensor(found.files[name], found.stored_as[name]) for name in parts]
        tensors[ours] = read[0] if len(read) == 1 else fuse(read, shapes[ours])
        if ours in scaled:
            for name, weight in zip(parts, read, strict=True):
                path = found.files[name]
                check_codes(f"{path.parent}", path, found.stored_as[name], weight)
            num_parts = 1 if len(parts) == 1 else num_fused(ours)
            scales[ours] = _read_scales(found, parts, shapes[ours], scaled[ours], num_parts)
    head.load_tensors(tensors)
    for ours, (scale, row_blocks) in scales.items():
        owner, _, leaf = ours.rpartition(".")
        set_scales(head.get_submodule(owner), leaf, scale, row_blocks)


def _read_scales(
    found: HeadFiles, parts: Mapping[str, Size], weight: Size, shape: Size, num_parts: int
) -> tuple[Tensor, Tensor]:
    """Return the scales of one of the head's parameters, and the scale of each row."""
    names = {name: found.scales[name] for name in parts}
    read = [
        read_scale(found.files[scale], found.stored_as[scale], tuple(parts[name]))
        for name, scale in names.items()
    ]
    scale = read[0] if len(read) == 1 else fuse(read, shape)
    return scale, row_blocks_of(weight[-2], shape[-2], num_parts)


def _expected(parts: Mapping[str, Mapping[str, Size]]) -> dict[str, Size]:
    return {name: shape for each in parts.values() for name, shape in each.items()}


def _check_names(
    ref: str, head: DraftHead, found: HeadFiles, expected: set[str], *, are_scales_known: bool
) -> None:
    kind = head.family.kind
    present = set(_names_of(head, found))
    if are_scales_known:
        scales = {found.scales[name] for name in expected & found.scales.keys()}
        present = {name for name in present - scales if not name.endswith(UNUSED)}
    if quantised := sorted(name for name in present if _SCALES.search(name)):
        raise MissingHeadError(
            f"{ref}: the {kind} is quantised ({_listed(quantised)}). "
            "Give --head with a bfloat16 or float16 head"
        )
    if missing := sorted(expected - set(found.files)):
        raise MissingHeadError(f"{ref}: the {kind} lacks {_listed(missing)}")
    whose = "its target's"
    if head.family.reads_aux:
        whose = "Qwen3's" if head.family.is_parallel else "Llama's"
    if unused := sorted(present - expected):
        raise MissingHeadError(
            f"{ref}: the {kind} has {_listed(unused)}, which {whose} layers do not have. "
            "It was made for another target"
        )


def _check_headers(ref: str, kind: str, stored: Mapping[str, StoredTensor]) -> None:
    if odd := sorted(name for name, tensor in stored.items() if tensor.dtype not in _FLOATS):
        kinds = ", ".join(sorted({stored[name].dtype for name in odd}))
        raise MissingHeadError(
            f"{ref}: the {kind} is stored as {kinds} ({_listed(odd)}). "
            "Give --head with a bfloat16 or float16 head"
        )


def _check_sizes(
    ref: str, kind: str, stored: Mapping[str, StoredTensor], expected: Mapping[str, Size]
) -> None:
    wrong = [
        f"{name} is {stored[name].shape}, not {tuple(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != tuple(shape)
    ]
    if wrong:
        raise MissingHeadError(f"{ref}: the {kind} does not fit its target: {_listed(wrong)}")


def _names_of(head: DraftHead, found: HeadFiles) -> Iterator[str]:
    """Yield the names of the head's tensors in the files.

    The matrices that are compared with the target's are left out. So is the output norm if another
    one is stated.
    """
    family = head.family
    names = [family.prefixes(module.number) for module in head.mtp_modules]
    prefixes = tuple(f"{prefix}." for modules in names for prefix in modules.values())
    left = {copy.name for copies in found.copies for copy in copies}
    if "out_norm" in family.names and family.out_norm != OutputNorm.OWN:
        norms = (f"{modules['out_norm']}.weight" for modules in names)
        left |= {found.stored_as.get(norm, "") for norm in norms}
    for name in found.files:
        is_left = found.stored_as[name] in left or name.endswith(_DERIVED)
        if name.startswith(prefixes) and not is_left:
            yield name


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
