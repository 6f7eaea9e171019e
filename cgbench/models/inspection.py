"""Report what a checkpoint holds and what would be loaded from where, without loading a weight."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from torch import nn

from cgbench.errors import BadInputError, MissingHeadError, ModelError, UnsupportedModelError
from cgbench.models.checkpoint import StoredTensor, stored_tensors, tensor_files
from cgbench.models.division.division_check import check_division
from cgbench.models.heads.dflash_head import DFlashHead
from cgbench.models.heads.head import adds_one
from cgbench.models.heads.head_copies import CopyUse
from cgbench.models.heads.head_files import HeadFiles, head_tensors
from cgbench.models.loading_plan import Loading, LoadingPlan, plan_loading
from cgbench.models.placement import check_headers
from cgbench.models.precision import PartPrecision, precision_by_part
from cgbench.models.support import check_capturable, class_name
from cgbench.models.target import Target
from cgbench.request.choices import (
    ConcatOrder,
    FirstEmbedding,
    ModuleFeed,
    NormForm,
    NormSide,
    OutputNorm,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """This class holds what a target's files contain.

    ``files`` maps each file's name to its bytes. ``dtypes`` counts the tensors of each stored type.
    In a GGUF file they are not counted.
    """

    files: Mapping[str, int]
    dtypes: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """This class names a matrix that is stored with a head, and what is done with it."""

    what: str
    name: str
    use: CopyUse


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """This class describes the head that would be loaded.

    ``aux_layers`` are the target's layers whose input the head is fed in place of its last state.
    ``draft_vocab_size`` counts the tokens that a draft can be, and ``draft_vocab_source`` says in
    words by what they were chosen. Both are None if they are all of the target's. ``output_bytes``
    are those of the rows that are gathered from the target's output matrix to draft them.
    ``block_size`` and ``mask_token`` are those of a parallel drafter's block. They are None for a
    head that drafts step by step. ``origin`` is where it would be loaded from. It is None if the
    head would be made.
    """

    family: str
    label: str
    source: str
    modules: int
    modules_stored: int
    concat: ConcatOrder
    hidden_in: NormSide
    chain: NormSide
    out_norm: OutputNorm
    norm_form: NormForm
    first_embed: FirstEmbedding
    feed: ModuleFeed
    target_norms: NormForm
    aux_layers: tuple[int, ...]
    draft_vocab_size: int | None
    draft_vocab_source: str | None
    output_bytes: int
    block_size: int | None
    mask_token: int | None
    copies: tuple[CopyFacts, ...]
    num_tensors: int
    weight_bytes: int
    origin: str | None


@dataclass(frozen=True, slots=True)
class RankFacts:
    """This class describes what each of ``num_ranks`` ranks would hold.

    ``weight_bytes`` are the least, the head's included. What every rank holds whole comes on top.
    ``kv_copies`` counts the ranks that hold one head of keys and values. ``problem`` is what stands
    in the way of a division, or None.
    """

    num_ranks: int
    weight_bytes: int
    kv_bytes_per_token: int
    kv_copies: int
    state_bytes_per_request: int
    state_bytes_per_verified_row: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """An inspection describes a model as it would be loaded, and what stands in the way.

    ``head_tensors`` are those that would be loaded into the head. Each problem is None if there is
    none. ``checkpoint`` is None for a preset, and ``ranks`` for one GPU. The counts of experts are
    one mixture's, None if no layer is a mixture. Shared experts are not among them.
    """

    model: str
    class_name: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    experts: bool
    num_experts: int | None
    experts_per_token: int | None
    tied_embeddings: bool
    dtype: str
    weight_bytes: int
    quantisation: str | None
    precision: tuple[PartPrecision, ...]
    checkpoint: CheckpointFacts | None
    head: HeadFacts | None
    kv_bytes_per_token: int
    kv_format: str
    latent_size: int | None
    state_bytes_per_request: int
    state_bytes_per_verified_row: int
    ranks: RankFacts | None
    weights_problem: str | None
    head_problem: str | None
    capture_problem: str | None
    head_tensors: tuple[StoredTensor, ...]

    @property
    def is_usable(self) -> bool:
        """Return whether all weights and a head are there, and graphs can be captured.

        Ranks that are asked about must be able to share the model, too.
        """
        division_problem = None if self.ranks is None else self.ranks.problem
        problems = (self.weights_problem, self.head_problem, self.capture_problem, division_problem)
        return all(problem is None for problem in problems)

    def to_json(self) -> str:
        """Return the whole inspection as one JSON object."""
        return json.dumps(asdict(self, dict_factory=_as_json), indent=2)


_NAMES = {"class_name": "class", "origin": "from"}
"""JSON has these names for fields whose names Python keeps for itself."""


def _as_json(values: list[tuple[str, object]]) -> dict[str, object]:
    return {_NAMES.get(name, name): value for name, value in values}


def inspect_model(request: Loading) -> Inspection:
    """Return what ``cgbench run`` would find out before it spends memory.

    Missing weights, a missing head, or a forward that cannot be captured are findings and not
    errors. Raise ``ModelError`` if there is no model to describe, and ``UnsupportedModelError`` if
    it cannot be run.
    """
    head_problem = None
    try:
        plan = plan_loading(request)
    except MissingHeadError as error:
        head_problem = str(error)
        plan = plan_loading(_without_head(request))
    tensors = _head_tensors(plan)
    skeleton, dtype = plan.skeleton, request.dtype
    target = skeleton.target
    mixture = next(iter(skeleton.kv.expert_shapes.values()), None)
    return Inspection(
        model=plan.label,
        class_name=class_name(plan.config),
        num_layers=target.num_layers,
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        max_positions=target.max_positions,
        experts=target.has_mixtures,
        num_experts=None if mixture is None else mixture.num_experts,
        experts_per_token=None if mixture is None else mixture.top_k,
        tied_embeddings=bool(plan.config.get_text_config().tie_word_embeddings),
        dtype=str(dtype).removeprefix("torch."),
        weight_bytes=skeleton.weight_bytes(dtype),
        quantisation=None if plan.scheme is None else plan.scheme.words(plan.quant),
        precision=precision_by_part(skeleton, dtype),
        checkpoint=_checkpoint_facts(plan),
        head=_head_facts(plan, tensors),
        kv_bytes_per_token=skeleton.kv_bytes_per_token(dtype, kv_format=plan.kv_format),
        kv_format=plan.kv_format.words(str(dtype).removeprefix("torch.")),
        latent_size=skeleton.latent_size,
        state_bytes_per_request=skeleton.state_bytes(dtype),
        state_bytes_per_verified_row=skeleton.state_bytes_per_row(dtype),
        ranks=_rank_facts(plan),
        weights_problem=_refusal(check_headers, plan),
        head_problem=head_problem,
        capture_problem=_refusal(check_capturable, plan.config),
        head_tensors=tensors,
    )


def _refusal(check: Callable[[_T], None], of: _T) -> str | None:
    try:
        check(of)
    except (BadInputError, ModelError, UnsupportedModelError) as error:
        return str(error)
    return None


def _rank_facts(plan: LoadingPlan) -> RankFacts | None:
    skeleton, dtype, num_ranks = plan.skeleton, plan.request.dtype, plan.request.ranks.size
    if num_ranks == 1:
        return None
    weights = skeleton.weight_bytes(dtype) + skeleton.head_bytes(dtype)
    return RankFacts(
        num_ranks=num_ranks,
        weight_bytes=weights // num_ranks,
        kv_bytes_per_token=skeleton.kv_bytes_per_token(dtype, num_ranks, plan.kv_format),
        kv_copies=skeleton.kv_copies(num_ranks),
        state_bytes_per_request=skeleton.state_bytes(dtype) // num_ranks,
        state_bytes_per_verified_row=skeleton.state_bytes_per_row(dtype) // num_ranks,
        problem=_refusal(check_division, plan),
    )


def _without_head(request: Loading) -> Loading:
    plain = Loading(request.ref, None, False, request.device, request.dtype)
    return replace(plain, kv_dtype=request.kv_dtype, quant=request.quant, ranks=request.ranks)


def _checkpoint_facts(plan: LoadingPlan) -> CheckpointFacts | None:
    """Return what the target's files contain, or None for a preset, which has none."""
    if plan.request.preset is not None:
        return None
    if plan.gguf_file is not None:
        file = plan.gguf_file
        return CheckpointFacts({file.name: file.stat().st_size}, {"gguf, dequantised": None})
    stored = stored_tensors(tensor_files(plan.request.path))
    files: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for tensor in stored.values():
        files[tensor.file] += tensor.num_bytes
        dtypes[tensor.dtype] += 1
    return CheckpointFacts(dict(files), dict(dtypes))


def _head_facts(plan: LoadingPlan, tensors: tuple[StoredTensor, ...]) -> HeadFacts | None:
    family, found = plan.family, plan.head_files
    head = plan.skeleton.head
    if family is None or head is None:
        return None
    form = head.form if isinstance(head, DFlashHead) else None
    return HeadFacts(
        family=family.name,
        label=plan.head_label,
        source=family.source,
        modules=plan.num_modules,
        modules_stored=plan.num_stored,
        concat=family.concat,
        hidden_in=family.hidden_in,
        chain=family.chain,
        out_norm=family.out_norm,
        norm_form=family.norm_form,
        first_embed=family.first_embed,
        feed=family.feed,
        target_norms=_norm_form(plan.skeleton.target),
        aux_layers=head.aux_layers,
        draft_vocab_size=head.draft_vocab_size,
        draft_vocab_source=_draft_source(plan),
        output_bytes=_output_bytes(plan),
        block_size=None if form is None else form.block_size,
        mask_token=None if form is None else form.mask_token,
        copies=_copy_facts(found),
        num_tensors=len(tensors),
        weight_bytes=plan.skeleton.head_bytes(plan.request.dtype),
        origin=None if found is None else plan.request.head_ref or plan.request.ref,
    )


def _draft_source(plan: LoadingPlan) -> str | None:
    head = plan.skeleton.head
    if head is None or head.draft_vocab_size is None:
        return None
    return "by d2t" if plan.draft_tokens is None else plan.draft_tokens.source


def _output_bytes(plan: LoadingPlan) -> int:
    """Return the bytes of the rows that the head has gathered from the target's output matrix."""
    head = plan.skeleton.head
    if head is None or not any(each.has_target_rows for each in head.mtp_modules):
        return 0
    parts = precision_by_part(plan.skeleton, plan.request.dtype)
    return sum(each.num_bytes for each in parts if each.part == "head lm_head")


def _copy_facts(found: HeadFiles | None) -> tuple[CopyFacts, ...]:
    copies = () if found is None else found.copies
    return tuple(CopyFacts(c.what, c.name, c.use) for each in copies for c in each)


def _norm_form(target: Target) -> NormForm:
    norm = target.backbone.norm
    assert isinstance(norm, nn.Module)
    return NormForm.ONE_PLUS if adds_one(norm) else NormForm.PLAIN


def _head_tensors(plan: LoadingPlan) -> tuple[StoredTensor, ...]:
    """Return the tensors that would be loaded into the head, in the head's own order."""
    head, found = plan.skeleton.head, plan.head_files
    if head is None or found is None:
        return ()
    names = [name for parts in head_tensors(head, found).values() for name in parts]
    stored = stored_tensors({found.stored_as[name]: found.files[name] for name in names})
    return tuple(stored[found.stored_as[name]] for name in names)
