"""Find and make heads of any family: MTP modules, an EAGLE-3 head or a DFlash drafter."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cgbench.models.heads.dflash_files import dflash_signs, find_dflash
from cgbench.models.heads.dflash_head import DFlashHead
from cgbench.models.heads.eagle3_files import eagle3_signs, find_eagle3
from cgbench.models.heads.eagle3_head import Eagle3Head
from cgbench.models.heads.families import DFLASH, EAGLE3, HeadFamily
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.heads.head_copies import TargetMatrices
from cgbench.models.heads.head_files import HeadFiles, find_head
from cgbench.models.heads.head_search import HeadFolder
from cgbench.models.target import Target


def find_any_head(
    folder: HeadFolder,
    target: Target,
    matrices: TargetMatrices,
    dtype: torch.dtype,
    family: str | None = None,
    most_modules: int | None = None,
) -> HeadFiles:
    """Return the head for ``target`` that ``folder`` holds, of whatever kind it is.

    ``find_head`` states what the arguments are. Raise its errors.
    """
    if family == DFLASH.name or dflash_signs(folder):
        return find_dflash(folder, target, family, most_modules)
    if family == EAGLE3.name or eagle3_signs(folder.files):
        return find_eagle3(folder, target, matrices, dtype, family, most_modules)
    return find_head(folder, target, matrices, dtype, family, most_modules)


def make_head(
    family: HeadFamily, target: PreTrainedModel, forms: Sequence[HeadForm] = ()
) -> DraftHead:
    """Return a head of ``family`` for ``target``, with a module for each of ``forms``.

    It is on the current default device and not initialised.
    """
    if not family.reads_aux:
        return DraftHead(family, target, *forms)
    (form,) = forms
    made = DFlashHead if family.is_parallel else Eagle3Head
    return made(family, target, form)
