"""Finding a draft head in a checkpoint's files and reading its tensors, one by one."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Size, Tensor
from transformers import PretrainedConfig

from cgbench.errors import MissingHeadError
from cgbench.models.checkpoint import StoredTensor, read_tensor, stored_tensors
from cgbench.models.experts import expert_parts, fuse
from cgbench.models.families import FAMILIES, HeadFamily
from cgbench.models.head import DraftHead

# Some checkpoints store these again in the head; they are the target's.
SHARED_COPIES = (
    "embed_tokens.weight",
    "lm_head.weight",
    "shared_head.head.weight",
    "shared_head.output.weight",
    "rotary_emb.inv_freq",
)

# What quantised weights are stored beside, and the types they are stored in.
_SCALES = re.compile(r"(weight_scale(_inv)?|qweight|qzeros|scales|weight_packed|g_idx)$")
_FLOATS = ("F32", "F16", "BF16")

# How many names an error spells out before it counts the rest.
_MOST_NAMES = 6


@dataclass(frozen=True, slots=True)
class HeadFiles:
    """A head found in a checkpoint: its family, its tensors' files, and how many modules there
    are. ``files`` is keyed by the checkpoint's names without the family's infix; ``stored_as``
    gives the name in the file."""

    family: HeadFamily
    files: Mapping[str, Path]
    stored_as: Mapping[str, str]
    num_modules: int
    first_number: int

    @property
    def proj_bias(self) -> bool:
        return self.family.tensor_name("proj.bias", self.first_number) in self.files


def find_head(
    ref: str, files: Mapping[str, Path], config: PretrainedConfig, family: str | None = None
) -> HeadFiles:
    """The head whose tensors the checkpoint holds, ``family`` naming it where names do not tell.

    Raises ``MissingHeadError`` naming what was looked for.
    """
    candidates = [FAMILIES[family]] if family else _families_for(config.model_type)
    for candidate in candidates:
        if any(name in files for name in _own_names(candidate, config)):
            return _head_files(candidate, files, config)
    looked_for = ", ".join(dict.fromkeys(f"{_own_names(c, config)[0]}" for c in candidates))
    raise MissingHeadError(
        f"{ref}: {_declared(config)}no MTP head tensors (looked for {looked_for}); "
        "give --head PATH, or --spec-tokens 0 to measure without speculation"
    )


def _families_for(model_type: str) -> list[HeadFamily]:
    """The families whose model type this is first, then those that come with any."""
    named = [family for family in FAMILIES.values() if model_type in family.model_types]
    return named + [family for family in FAMILIES.values() if not family.model_types]


def _own_names(family: HeadFamily, config: PretrainedConfig) -> list[str]:
    """The tensors that only this layout has: those outside the decoder block, projection first."""
    prefixes = family.prefixes(family.first_number(config.num_hidden_layers))
    own = ["proj", *(name for name in prefixes if name not in ("proj", "block"))]
    return [f"{prefixes[name]}.weight" for name in own]


def _declared(config: PretrainedConfig) -> str:
    """What config.json says of a head that is not there, for re-quantised checkpoints."""
    for field in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"):
        if number := getattr(config, field, None):
            return f"config.json declares {field} {number}, but the checkpoint ships "
    return ""


def _head_files(
    family: HeadFamily, files: Mapping[str, Path], config: PretrainedConfig
) -> HeadFiles:
    stored_as = {name.replace(f".{family.dropped}", "."): name for name in files}
    plain = {name: files[stored] for name, stored in stored_as.items()}
    first = family.first_number(config.num_hidden_layers)
    number = first
    while any(name.startswith(f"{family.prefixes(number)['block']}.") for name in plain):
        number += 1
        if "{i}" not in family.names["block"]:
            break
    return HeadFiles(family, plain, stored_as, number - first, first)


def head_tensors(head: DraftHead, found: HeadFiles) -> dict[str, dict[str, Size]]:
    """Each of the head's tensors, and the checkpoint's tensors that make it, with their shapes.

    Fused experts are taken as they are where the checkpoint fuses them too.
    """
    parts: dict[str, dict[str, Size]] = {}
    for ours, tensor in head.state_dict().items():
        theirs = head.tensor_name(ours)
        split = None if theirs in found.files else expert_parts(theirs, tensor.shape)
        parts[ours] = split or {theirs: tensor.shape}
    return parts


def check_head(ref: str, head: DraftHead, found: HeadFiles) -> None:
    """Hold the files' names and headers against what ``head`` needs, one by one; no weight is read.

    Raises ``MissingHeadError`` naming the tensors that are missing, quantised, of another shape,
    or of another target.
    """
    expected = _expected(head_tensors(head, found))
    _check_names(ref, head, found, set(expected))
    stored = stored_tensors({found.stored_as[name]: found.files[name] for name in expected})
    _check_headers(ref, {name: stored[found.stored_as[name]] for name in expected}, expected)


def read_head(head: DraftHead, found: HeadFiles) -> None:
    """Fill ``head`` from files that ``check_head`` has passed."""
    shapes = {ours: tensor.shape for ours, tensor in head.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for ours, parts in head_tensors(head, found).items():
        read = [read_tensor(found.files[name], found.stored_as[name]) for name in parts]
        tensors[ours] = read[0] if len(read) == 1 else fuse(read, shapes[ours])
    head.load_tensors(tensors)


def _expected(parts: Mapping[str, Mapping[str, Size]]) -> dict[str, Size]:
    return {name: shape for each in parts.values() for name, shape in each.items()}


def _check_names(ref: str, head: DraftHead, found: HeadFiles, expected: set[str]) -> None:
    present = set(_names_of(head, found))
    if quantised := sorted(name for name in present if _SCALES.search(name)):
        raise MissingHeadError(
            f"{ref}: the MTP head is quantised ({_listed(quantised)}); "
            "give --head with a bfloat16 or float16 head"
        )
    if missing := sorted(expected - set(found.files)):
        raise MissingHeadError(f"{ref}: the MTP head lacks {_listed(missing)}")
    if unused := sorted(present - expected):
        raise MissingHeadError(
            f"{ref}: the MTP head has {_listed(unused)}, which its target's layers do not have; "
            "it was made for another target"
        )


def _check_headers(
    ref: str, stored: Mapping[str, StoredTensor], expected: Mapping[str, Size]
) -> None:
    if odd := sorted(name for name, tensor in stored.items() if tensor.dtype not in _FLOATS):
        kinds = ", ".join(sorted({stored[name].dtype for name in odd}))
        raise MissingHeadError(
            f"{ref}: the MTP head is stored as {kinds} ({_listed(odd)}); "
            "give --head with a bfloat16 or float16 head"
        )
    wrong = [
        f"{name} is {stored[name].shape}, not {tuple(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != tuple(shape)
    ]
    if wrong:
        raise MissingHeadError(f"{ref}: the MTP head does not fit its target: {_listed(wrong)}")


def _names_of(head: DraftHead, found: HeadFiles) -> Iterator[str]:
    """The head's own tensors in the files, without the copies of what it shares."""
    number = head.family.first_number(head.layer_idx)
    prefixes = tuple(f"{prefix}." for prefix in head.family.prefixes(number).values())
    for name in found.files:
        if name.startswith(prefixes) and not name.endswith(SHARED_COPIES):
            yield name


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
