"""Find a DFlash drafter in the files of a folder.

Its tensors are ``fc``, ``hidden_norm``, ``norm`` and ``layers.*``. Embedding and output matrix are
the target's, and none of its own is stored.
"""

from torch import nn

from cgbench.errors import MissingHeadError
from cgbench.models.checkpoint import raw_config
from cgbench.models.heads.dflash_config import is_dflash, read_dflash_form
from cgbench.models.heads.eagle3_files import check_apart
from cgbench.models.heads.families import DFLASH
from cgbench.models.heads.head_files import HeadFiles, num_used
from cgbench.models.heads.head_search import HeadFolder
from cgbench.models.target import Target

_OWN = ("fc.weight", "hidden_norm.weight")
_DERIVED = "rotary_emb.inv_freq"


def dflash_signs(folder: HeadFolder) -> list[str]:
    """Return what shows that ``folder`` holds a DFlash drafter, tensors before the config.

    No other head has a ``hidden_norm`` outside its layers, and no other declares it.
    """
    signs = [name for name in _OWN if name in folder.files]
    found = signs if len(signs) == len(_OWN) else []
    return [*found, *(["config.json"] if is_dflash(raw_config(folder.ref)) else [])]


def find_dflash(
    folder: HeadFolder,
    target: Target,
    family: str | None = None,
    most_modules: int | None = None,
) -> HeadFiles:
    """Return the DFlash drafter for ``target`` that ``folder`` holds.

    ``head_files.find_head`` states what the arguments are. Raise its errors.
    """
    signs = dflash_signs(folder)
    lacking = [name for name in _OWN if name not in folder.files]
    if not signs:
        raise MissingHeadError(
            f"{folder.ref}: no DFlash drafter's tensors (looked for {', '.join(_OWN)}). "
            "Give --head PATH, or --spec-tokens 0 to measure without speculation"
        )
    check_apart(folder, f"a DFlash drafter ({', '.join(signs)})", DFLASH, family)
    raw = raw_config(folder.ref)
    form = read_dflash_form(
        folder.ref, raw, target.num_layers, target.hidden_size, target.last_token
    )
    if lacking:
        raise MissingHeadError(f"{folder.ref}: the DFlash drafter lacks {', '.join(lacking)}")
    if type(target.model.get_input_embeddings()) is not nn.Embedding:
        raise MissingHeadError(
            f"{folder.ref}: the target's embedding scales what it looks up, and a DFlash drafter "
            "reads it as it is stored"
        )
    _check_known(folder)
    num_used(1, most_modules)
    stored_as = {name: name for name in folder.files}
    return HeadFiles(DFLASH, folder.files, stored_as, 1, 0, ((),), dflash=form)


def _check_known(folder: HeadFolder) -> None:
    """Refuse tensors that no DFlash drafter has that can be run here, such as a Markov head."""
    prefixes = tuple(f"{prefix}." for prefix in DFLASH.names.values())
    unknown = sorted(
        name
        for name in folder.files
        if not name.startswith(prefixes) and not name.endswith(_DERIVED)
    )
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise MissingHeadError(
            f"{folder.ref}: has {', '.join(unknown[:3])}{more}, which is no part of a DFlash "
            "drafter that can be run here"
        )
