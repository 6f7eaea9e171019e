"""Find out, from a model reference on the command line, what would be loaded from where.

Nothing here reads a weight or touches a device.
"""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig
from transformers.utils import logging as transformers_logging

from cgbench.errors import (
    BadInputError,
    MissingHeadError,
    ModelError,
)
from cgbench.models.checkpoint import (
    CONFIG_FILE,
    check_generation_config,
    check_ref,
    config_from_dict,
    raw_config,
    read_config,
    stored_tensors,
    tensor_files,
)
from cgbench.models.gguf import find_gguf
from cgbench.models.heads.any_head import find_any_head
from cgbench.models.heads.draft_tokens import DraftTokens, choose_tokens
from cgbench.models.heads.families import FAMILIES, HeadFamily
from cgbench.models.heads.gguf_head import gguf_head_files
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.heads.head_copies import target_matrices
from cgbench.models.heads.head_files import (
    HeadFiles,
    check_head,
    head_scheme,
    num_used,
    scaled_shapes,
)
from cgbench.models.heads.head_search import HeadFolder, open_folder, types_in
from cgbench.models.heads.head_wiring import check_family, named, wired
from cgbench.models.heads.reduced_output import reduce_outputs, reduced_scales
from cgbench.models.presets import PRESETS, Preset
from cgbench.models.quantised.kv_format import PLAIN, KvFormat, stated_scales
from cgbench.models.quantised.scaled_files import ScaledFiles, find_scaled
from cgbench.models.quantised.scaled_loading import placed_scales
from cgbench.models.quantised.scaled_presets import converted
from cgbench.models.quantised.scheme import (
    Fp8Scheme,
    forget_scheme,
    read_scheme,
)
from cgbench.models.skeleton import Skeleton, make_skeleton, make_target, with_head
from cgbench.models.support import check_config, class_name
from cgbench.models.target import Target
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.request.choices import Dtype, HeadPlacement, KvDtype, QuantMode
from cgbench.request.model_ref import DEFAULT_MODEL, DEFAULT_MODEL_DIR, preset_name
from cgbench.request.parts import HeadWiring, ModelRequest, SharingRequest
from cgbench.words import Quant, Routing

DEFAULT_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass(frozen=True, slots=True)
class Loading:
    """A loading states what is to be loaded where, with nothing left to default.

    ``ref`` is ``default``, ``preset:NAME``, a folder, a GGUF file or a hub id. ``head_ref`` is a
    folder or hub id whose head replaces the checkpoint's own. ``with_head`` is false for k = 0
    alone. ``divided_head``: the ranks share the head's block as they share the target's layers.
    ``routing``: how tokens choose their experts, if there are any. ``mtp_modules``: the most
    modules of the head that draft, None for all. ``draft_vocab`` and ``draft_vocab_from``: how
    many tokens may be drafted, and the file that ranks them. ``ranks`` share the model. Raise
    ``BadInputError`` for a head's family that is unknown.
    """

    ref: str
    head_ref: str | None
    with_head: bool
    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    divided_head: bool = False
    routing: Routing = Routing.MODEL
    wiring: HeadWiring = field(default_factory=HeadWiring)
    ranks: Ranks = ALONE
    keeps_latents: bool = True
    """Whether latent attention keeps latents. Otherwise it keeps every head's keys and values."""
    mtp_modules: int | None = None
    draft_vocab: int | None = None
    draft_vocab_from: str | None = None
    kv_dtype: KvDtype = KvDtype.AUTO
    quant: QuantMode = QuantMode.AUTO

    def __post_init__(self) -> None:
        check_family(self.wiring)

    @property
    def preset(self) -> str | None:
        """Return the preset's name, or None for a checkpoint."""
        return preset_name(self.ref)

    @property
    def path(self) -> str:
        """Return the folder, file or hub id that the target is read from."""
        return str(DEFAULT_MODEL_DIR) if self.ref == DEFAULT_MODEL else self.ref

    @property
    def head_path(self) -> str:
        """Return the folder or hub id that the head is read from."""
        return self.head_ref or self.path


def loading_of(
    model: ModelRequest,
    sharing: SharingRequest,
    device: torch.device,
    *,
    with_head: bool,
    seed: int,
    ranks: Ranks = ALONE,
    keeps_latents: bool = True,
) -> Loading:
    """Return the loading that ``model`` asks for on ``device``.

    ``seed`` makes random weights.
    """
    is_auto = model.dtype == Dtype.AUTO
    return Loading(
        ref=model.ref,
        head_ref=model.head,
        with_head=with_head,
        device=device,
        dtype=DEFAULT_DTYPE[device.type] if is_auto else getattr(torch, model.dtype),
        seed=seed,
        wiring=model.wiring,
        divided_head=sharing.head == HeadPlacement.DIVIDED,
        routing=_routing(model),
        ranks=ranks,
        keeps_latents=keeps_latents,
        mtp_modules=model.mtp_modules,
        draft_vocab=model.draft_vocab,
        draft_vocab_from=model.draft_vocab_from,
        kv_dtype=model.kv_dtype,
        quant=model.quant,
    )


def _routing(model: ModelRequest) -> Routing:
    """Return the routing that was asked for, or the model's default.

    The router of random weights chooses like none in service. So a preset's experts are drawn
    evenly unless ``--routing`` states otherwise.
    """
    if model.routing is not None:
        return model.routing
    return Routing.MODEL if preset_name(model.ref) is None else Routing.BALANCED


@dataclass(frozen=True, slots=True)
class LoadingPlan:
    """A loading plan states what would be loaded from where, as the files show it.

    ``family`` has the overrides applied. ``head_files`` is None without a head, and for presets,
    which make their own. ``gguf_file`` is set for a GGUF target.
    """

    request: Loading
    config: PretrainedConfig
    skeleton: Skeleton
    family: HeadFamily | None
    head_files: HeadFiles | None
    gguf_file: Path | None
    scheme: Fp8Scheme | None = None
    scaled: ScaledFiles | None = None
    """The checkpoint's FP8 weights. They are None, as ``scheme`` is, if weights are plain."""
    num_stored: int = 1
    """How many modules the head has."""
    kv_format: KvFormat = PLAIN
    draft_tokens: DraftTokens | None = None
    """The tokens that the head may draft. They are None if its own files decide."""

    @property
    def quant(self) -> Quant:
        """Return the numeric mode of the weights, as a row's key has it."""
        if not (self.skeleton.scaled or self.skeleton.head_scaled):
            return Quant.NONE
        return Quant.W8A8 if self.request.quant == QuantMode.W8A8 else Quant.W8A16

    @property
    def routing(self) -> Routing:
        """Return how tokens choose their experts.

        It is the model's own routing for a dense model, whatever is asked.
        """
        return self.request.routing if self.skeleton.kv.expert_shapes else Routing.MODEL

    @property
    def label(self) -> str:
        """Return the name of the model in every output."""
        ref = self.request.ref
        return f"{ref} (random weights)" if self.request.preset else _label(ref)

    @property
    def head_label(self) -> str:
        """Return the name of the head in every output.

        It has the head's family, and its origin if that is not MODEL. Of several modules it states
        which of them draft, and of a reduced vocabulary how many tokens and by what.
        """
        if self.family is None:
            return "none"
        ref = self.request.head_ref
        name = self.family.name if ref is None else f"{self.family.name}:{_label(ref)}"
        notes = [] if self.num_stored == 1 else [modules_used(self.num_modules, self.num_stored)]
        notes += ["parallel"] if self.family.is_parallel else []
        notes += [self.draft_tokens.label] if self.draft_tokens is not None else []
        notes += ["random weights"] if self.request.preset else []
        return f"{name} ({', '.join(notes)})" if notes else name

    @property
    def num_modules(self) -> int:
        """Return how many of the head's modules draft, which is 0 without a head."""
        return 0 if self.skeleton.head is None else self.skeleton.head.num_modules


def modules_used(count: int, num_stored: int) -> str:
    """Return in words which of a head's modules draft."""
    if count == num_stored:
        return f"{count} modules"
    return f"module 1 of {num_stored}" if count == 1 else f"modules 1..{count} of {num_stored}"


def check_model_ref(ref: str) -> None:
    """Check early that a model reference is a known preset or a checkpoint that may be there.

    Raise ``ModelError`` for an unknown preset or a folder that is not there.
    """
    if ref == DEFAULT_MODEL:
        return
    preset = preset_name(ref)
    if preset is None:
        check_ref("MODEL", ref)
    elif preset not in PRESETS:
        known = ", ".join(sorted(PRESETS))
        raise ModelError(f"MODEL {ref}: unknown preset. Choose one of {known}")


def plan_loading(request: Loading) -> LoadingPlan:
    """Read the config and the lists of tensors, and build the modules without storage.

    Raise ``ModelError``, ``MissingHeadError`` or ``UnsupportedModelError``. Raise ``BadInputError``
    for FP8 keys and values of latent attention, for a numeric mode that needs FP8 weights, and for
    a draft vocabulary that the head cannot have.
    """
    plan = _with_draft_tokens(_plan(request))
    _check_quant(plan)
    if request.kv_dtype == KvDtype.AUTO:
        return plan
    return replace(plan, kv_format=_fp8_format(plan))


def _with_draft_tokens(plan: LoadingPlan) -> LoadingPlan:
    """Return ``plan`` with the tokens that are to be drafted, and the head cut to them."""
    request, skeleton = plan.request, plan.skeleton
    head, target = skeleton.head, skeleton.target
    if head is None:
        return plan
    most = min(target.vocab_size, target.last_token + 1)
    is_random = request.preset is not None
    count, file = request.draft_vocab, request.draft_vocab_from
    tokens = choose_tokens(count, file, most, is_random=is_random)
    if tokens is None:
        return plan
    _check_cut(plan, head, len(tokens.ids))
    meta, scaled, own = torch.device("meta"), skeleton.scaled, skeleton.head_scaled
    reduce_outputs(head, target.lm_head, torch.tensor(tokens.ids), meta)
    cut = replace(skeleton, head_scaled=reduced_scales(head, scaled, own, len(tokens.ids)))
    return replace(plan, skeleton=cut, draft_tokens=tokens)


def _check_cut(plan: LoadingPlan, head: DraftHead, count: int) -> None:
    """Refuse a draft vocabulary of ``count`` tokens that the head or the ranks cannot have."""
    if head.draft_vocab_size is not None:
        raise BadInputError(
            f"--draft-vocab: the {head.family.kind} drafts {head.draft_vocab_size:,} tokens of its "
            "own, by d2t. Drop the flag"
        )
    num_ranks = plan.request.ranks.size
    if plan.skeleton.target.vocab_size % num_ranks == 0 != count % num_ranks:
        raise BadInputError(
            f"--draft-vocab {count}: --tp {num_ranks} divides the output matrix, so it must be a "
            f"multiple of {num_ranks}"
        )


def _check_quant(plan: LoadingPlan) -> None:
    """Refuse a numeric mode of FP8 weights that the model's weights cannot have."""
    mode, kind = plan.request.quant, class_name(plan.config)
    if mode == QuantMode.AUTO:
        return
    if plan.quant is Quant.NONE:
        raise BadInputError(f"--quant {mode}: {plan.label} has no FP8 weights. Drop --quant")
    if mode == QuantMode.W8A16:
        return
    of_head = None
    if plan.skeleton.head_scaled and plan.family is not None and plan.head_files is not None:
        of_head = head_scheme(plan.request.head_path, plan.family.kind)
    for scheme in (plan.scheme, of_head):
        if scheme is not None:
            scheme.check_w8a8(kind)


def _fp8_format(plan: LoadingPlan) -> KvFormat:
    """Return how keys and values are kept in FP8, with the scales that the checkpoint states."""
    request, target = plan.request, plan.skeleton.target
    if any(hasattr(module, "latent_weights") for module in target.model.modules()):
        raise BadInputError(
            f"--kv-dtype {request.kv_dtype}: {class_name(plan.config)} has latent attention, which "
            "keeps latents in the model's dtype. Use --kv-dtype auto"
        )
    if request.preset is not None or plan.gguf_file is not None:
        return KvFormat(is_fp8=True)
    layers = [layer for layer in plan.skeleton.kv.kv_shapes if layer < target.num_layers]
    return KvFormat(True, stated_scales(request.ref, tensor_files(request.path), layers))


def _plan(request: Loading) -> LoadingPlan:
    _quiet_transformers()
    check_model_ref(request.ref)
    if request.preset is not None:
        return _plan_preset(request, request.preset)
    gguf_file = find_gguf(request.path)
    config = read_config(request.path, gguf_file)
    check_config(config)
    scheme = read_scheme(config, class_name(config))
    forget_scheme(config)
    if gguf_file is None:
        check_generation_config(request.path, config)
    if request.head_ref is not None:
        check_ref("--head", request.head_ref)
    where = f"MODEL {gguf_file or Path(request.path, CONFIG_FILE)}"
    target = make_target(config, where)
    found, family = None, None
    if request.with_head:
        try:
            found, family = _find_head(request, target, gguf_file)
        except MissingHeadError:
            # If the target cannot be run either, that is the better error.
            with_head(target, None, where=where)
            raise
    forms = [] if found is None else found.forms
    num_stored = 1 if found is None else found.num_stored
    skeleton = with_head(target, family, forms, where=where, keeps_latents=request.keeps_latents)
    if found is not None and skeleton.head is not None:
        check_head(request.head_path, skeleton.head, found)
        skeleton = replace(skeleton, head_scaled=scaled_shapes(skeleton.head, found))
    if scheme is None:
        return LoadingPlan(
            request, config, skeleton, family, found, gguf_file, num_stored=num_stored
        )
    stored = stored_tensors(tensor_files(request.path))
    files = find_scaled(request.path, stored, scheme)
    scaled = placed_scales(request.path, target.model, files, stored)
    skeleton = replace(skeleton, scaled=scaled)
    return LoadingPlan(
        request, config, skeleton, family, found, None, scheme, files, num_stored=num_stored
    )


def _find_head(
    request: Loading, target: Target, gguf_file: Path | None
) -> tuple[HeadFiles, HeadFamily]:
    """Return the head's files, and its family wired as config.json and the flags state."""
    folder = _head_folder(request, target.config, gguf_file)
    files = None if gguf_file is not None else tensor_files(request.path)
    flags, stated = request.wiring, folder.stated
    name = flags.family or stated.family
    matrices = target_matrices(target, files)
    found = find_any_head(folder, target, matrices, request.dtype, name, request.mtp_modules)
    # A file's wiring holds for the family that the file states, and for no other.
    in_force = flags.family in (None, stated.family or found.family.name)
    family = wired(found.family, stated) if in_force else found.family
    return found, named(family, flags)


def _head_folder(request: Loading, config: PretrainedConfig, gguf_file: Path | None) -> HeadFolder:
    types = frozenset({config.model_type})
    if gguf_file is not None and request.head_ref is None:
        files = gguf_head_files(gguf_file)
        return HeadFolder(request.path, files, types, HeadWiring(), is_apart=False)
    if gguf_file is None:
        types = types_in(raw_config(request.path)) or types
    return open_folder(request.head_path, types, is_apart=request.head_ref is not None)


def _plan_preset(request: Loading, name: str) -> LoadingPlan:
    for flag, value in (("--head", request.head_ref), ("--head-family", request.wiring.family)):
        if value is not None:
            raise ModelError(f"{flag}: {request.ref} makes its own head. Drop the flag")
    preset = PRESETS[name]
    config = config_from_dict(dict(preset.config))
    own = FAMILIES[preset.head_family]
    family = named(own, request.wiring) if request.with_head else None
    forms = preset_forms(preset, request.mtp_modules)
    skeleton = make_skeleton(config, family, forms, keeps_latents=request.keeps_latents)
    if preset.is_fp8:
        of_head = {} if skeleton.head is None else converted(skeleton.head)
        of_target = converted(skeleton.target.model)
        skeleton = replace(skeleton, scaled=of_target, head_scaled=of_head)
    num_stored = preset.num_modules
    return LoadingPlan(request, config, skeleton, family, None, None, num_stored=num_stored)


def preset_forms(preset: Preset, most_modules: int | None) -> list[HeadForm]:
    """Return the form of each module of a preset's head that is used. Raise as ``num_used``."""
    form = HeadForm(own_output=preset.has_own_outputs, dense=preset.has_dense_head)
    return [form] * num_used(preset.num_modules, most_modules)


def _label(ref: str) -> str:
    path = Path(ref)
    return path.resolve().name if path.exists() else ref


def _quiet_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
