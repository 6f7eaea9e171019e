"""Load the target, its draft head and its tokenizer, or make them for a preset."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

from cgbench.errors import ModelError, UnsupportedModelError, first_line
from cgbench.kernels.fp8.token_values import LEAST_COLUMNS
from cgbench.kernels.gdn.delta_net import StateShape
from cgbench.kernels.gpu import runs_kernels
from cgbench.models.attention_hook import ATTENTION_NAME, KvShape, ShapeProbe, is_latent
from cgbench.models.checkpoint import check_files, tensor_files
from cgbench.models.division.division_check import check_division
from cgbench.models.division.drafter_splits import drafter_splits
from cgbench.models.division.planned_splits import (
    block_splits,
    planned_splits,
    reading_plan,
    stacked_gates,
)
from cgbench.models.division.shards import (
    divide,
    divide_lm_head,
    divide_vocabulary,
    install_forwards,
    without_dtensors,
)
from cgbench.models.division.splits import HEAD_OUTPUT, LM_HEAD, Split, Splits, kv_copies
from cgbench.models.experts import implementation_for, take_over_loops
from cgbench.models.gguf import gguf_keywords
from cgbench.models.heads.any_head import make_head
from cgbench.models.heads.head import DraftHead, MtpModule
from cgbench.models.heads.head_files import read_head
from cgbench.models.heads.reduced_output import reduce_outputs
from cgbench.models.kept_types import kept_in_float32
from cgbench.models.loading_plan import Loading, LoadingPlan, plan_loading, preset_forms
from cgbench.models.placement import check_headers, check_placed, check_types
from cgbench.models.presets import PRESETS
from cgbench.models.projections import pack_projections
from cgbench.models.quantised.kv_format import PLAIN, KvFormat
from cgbench.models.quantised.scaled_files import ScaledFiles
from cgbench.models.quantised.scaled_loading import load_scaled, read_generation_config
from cgbench.models.quantised.scaled_modules import is_quantised, least_columns, use_w8a8
from cgbench.models.quantised.scaled_presets import quantise_parameters
from cgbench.models.random_weights import draw_head, random_target
from cgbench.models.router_rules import is_plain_mixture, order_choices
from cgbench.models.routing import BalancedRouting
from cgbench.models.skeleton import Skeleton
from cgbench.models.support import auto_class_for, class_name
from cgbench.models.target import Target, probe_kv_shapes
from cgbench.models.tokenizer import read_tokenizer
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.words import Quant, Routing


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A loaded model holds the target, its draft head and its tokenizer, ready to run.

    ``label`` and ``head_label`` are their names in every output, "random weights" included.
    ``tokenizer`` is None if the checkpoint ships none that can be read, as presets never do. Then
    ``tokenizer_problem`` holds the reason. ``num_head_modules`` counts the checkpoint's MTP
    modules, of which the head has those that draft.

    ``kv_shapes`` are those of each attention layer, the head's included, as this rank holds it.
    ``num_query_heads`` are those of the same layers. ``state_shapes`` are those of each
    linear-attention layer. ``skeleton`` holds the same modules as their own code has them, whole
    and without storage. ``ranks`` share the model.
    """

    target: Target
    head: DraftHead | None
    tokenizer: PreTrainedTokenizerBase | None
    tokenizer_problem: str
    label: str
    head_label: str
    random_weights: bool
    eos_token_ids: tuple[int, ...]
    num_head_modules: int
    kv_shapes: Mapping[int, KvShape]
    num_query_heads: Mapping[int, int]
    state_shapes: Mapping[int, StateShape]
    skeleton: Skeleton
    routing: Routing = Routing.MODEL
    quant: Quant = Quant.NONE
    ranks: Ranks = ALONE
    kv_format: KvFormat = PLAIN

    @property
    def keeps_latents(self) -> bool:
        """Return whether attention layers keep latents in place of keys and values."""
        return any(map(is_latent, self.kv_shapes.values()))

    @property
    def rounds_to_fp8(self) -> bool:
        """Return whether numbers that forwards compute are rounded to FP8 on the way."""
        return self.kv_format.is_fp8 or self.quant is Quant.W8A8

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters of the whole target. A tied embedding counts once."""
        return _num_elements(self.skeleton.target.model)

    @property
    def head_num_parameters(self) -> int:
        """Return the number of the head's own parameters, or 0 without a head."""
        return 0 if self.skeleton.head is None else _num_elements(self.skeleton.head)


def load_model(what: Loading | LoadingPlan) -> LoadedModel:
    """Load the target and its head on the device asked for, or make them for a preset.

    Raise ``ModelError``, ``MissingHeadError`` or ``UnsupportedModelError``.
    """
    plan = plan_loading(what) if isinstance(what, Loading) else what
    random_weights = plan.request.preset is not None
    check_types(plan)
    splits = _splits(plan)
    model = _make_target(plan, splits) if random_weights else _load_target(plan, splits)
    target = Target(model, splits)
    head = _make_head(plan, target) if random_weights else _load_head(plan, target)
    for module in (target.model, head):
        if module is not None:
            _find_plain_mixtures(module)
            if plan.quant is Quant.W8A8:
                _check_w8a8(plan, module)
                use_w8a8(module)
            pack_projections(module)
    tokenizer, problem = read_tokenizer(plan)
    kv = plan.skeleton.kv if plan.request.ranks.size == 1 else _probe(plan, target, head)
    if plan.routing is Routing.BALANCED:
        _balance(target, head, plan)
    return LoadedModel(
        target=target,
        head=head,
        tokenizer=tokenizer,
        tokenizer_problem=problem,
        label=plan.label,
        head_label=plan.head_label,
        random_weights=random_weights,
        eos_token_ids=_eos_token_ids(target.model),
        kv_shapes=kv.kv_shapes,
        num_query_heads=kv.num_query_heads,
        state_shapes=kv.state_shapes,
        skeleton=plan.skeleton,
        routing=plan.routing,
        quant=plan.quant,
        ranks=plan.request.ranks,
        num_head_modules=plan.num_stored,
        kv_format=plan.kv_format,
    )


def _balance(target: Target, head: DraftHead | None, plan: LoadingPlan) -> None:
    """Send tokens to drawn experts from now on."""
    for module in (target.model, head):
        if module is not None:
            order_choices(module)
    target.routing = BalancedRouting(plan.skeleton.kv.expert_shapes, plan.request.seed)
    target.routing.install(target.backbone, head)


def _probe(plan: LoadingPlan, target: Target, head: DraftHead | None) -> ShapeProbe:
    """The shapes that this rank keeps."""
    return probe_kv_shapes(target, head, keeps_latents=plan.request.keeps_latents)


def _find_plain_mixtures(module: nn.Module) -> None:
    """Mark the FP8 experts that the kernel can apply, so that it applies them."""
    for part in module.modules():
        if getattr(part, "holds_scales", False):
            part.__dict__["is_plain"] = is_plain_mixture(part)


def _check_w8a8(plan: LoadingPlan, module: nn.Module) -> None:
    """Refuse experts that only their own code can apply, because it quantises no activations.

    Refuse scales of fewer columns than the kernels take, too.
    """
    kind = class_name(plan.config)
    for part in module.modules():
        if getattr(part, "holds_scales", False) and not getattr(part, "is_plain", False):
            raise UnsupportedModelError(
                f"--quant w8a8: the experts of {kind} are applied by their own code, which does "
                "not quantise activations. Use --quant w8a16"
            )
    least = least_columns(module)
    if runs_kernels(plan.request.device) and least < LEAST_COLUMNS:
        raise UnsupportedModelError(
            f"--quant w8a8: {kind} has scales of {least} columns here, and the kernels take "
            f"{LEAST_COLUMNS} or more. Use --quant w8a16"
        )


def _implementations(plan: LoadingPlan) -> dict[str, str]:
    """Return which of transformers' implementations the forward uses.

    Mixtures that transformers lets nobody choose for are those of ``dispatch_experts``.
    """
    chosen = {"attn_implementation": ATTENTION_NAME}
    target = plan.skeleton.target
    if target.has_mixtures and type(target.model)._can_set_experts_implementation():
        request = plan.request
        implementation = implementation_for(request.device, request.dtype)
        chosen["experts_implementation"] = implementation
    return chosen


def _splits(plan: LoadingPlan) -> Splits:
    """Return what the ranks share of the target: nothing with one rank."""
    num_ranks = plan.request.ranks.size
    if num_ranks == 1:
        return {}
    check_division(plan)
    return planned_splits(plan.config, num_ranks, plan.skeleton.kv.num_kv_heads)


def _load_target(plan: LoadingPlan, splits: Splits) -> PreTrainedModel:
    request, ref = plan.request, plan.request.path
    if plan.scaled is not None:
        return _load_scaled_target(plan, plan.scaled, splits)
    whole = plan.skeleton.target.model
    read = stacked_gates(whole) if splits else set()
    distributed = {}
    if splits:
        own_plan = reading_plan(whole, read)
        reading = DistributedConfig(tp_size=request.ranks.size, tp_plan=own_plan)
        distributed = {"distributed_config": reading}
    try:
        model, info = auto_class_for(plan.config).from_pretrained(
            ref if plan.gguf_file is None else str(plan.gguf_file.parent),
            config=plan.config,
            dtype=request.dtype,
            output_loading_info=True,
            # A tensor of another shape is reported by name, below.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **_implementations(plan),
            **gguf_keywords(plan.gguf_file),
            **distributed,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        check_files(ref)
        raise ModelError(f"MODEL {ref}: {first_line(error)}") from error
    except RuntimeError:
        # transformers does not report which experts do not fit together.
        check_headers(plan)
        raise
    unfit = {name for name, *_ in info["mismatched_keys"]}
    check_placed(ref, model, info["missing_keys"], unfit, info["unexpected_keys"])
    if splits:
        without_dtensors(model, splits)
        _divide_target(model, splits, request.ranks, read)
    loaded: PreTrainedModel = model.to(request.device)
    return loaded


def _load_scaled_target(plan: LoadingPlan, files: ScaledFiles, splits: Splits) -> PreTrainedModel:
    """Load a target of FP8 weights.

    Each of several ranks reads it whole and keeps its part.
    """
    request, ref = plan.request, plan.request.path
    with torch.device("meta"):
        model: PreTrainedModel = auto_class_for(plan.config).from_config(
            plan.config, dtype=request.dtype, **_implementations(plan)
        )
    take_over_loops(model, request.device, request.dtype)
    device = torch.device("cpu") if splits else request.device
    scaled = plan.skeleton.scaled
    try:
        paths = tensor_files(ref)
        info = load_scaled(model, scaled, files, paths, request.dtype, device)
    except (OSError, SafetensorError) as error:
        check_files(ref)
        raise ModelError(f"MODEL {ref}: {first_line(error)}") from error
    unfit = {name for name, *_ in info.mismatched_keys} | info.conversion_errors.keys()
    check_placed(ref, model, info.missing_keys - unfit, unfit, info.unexpected_keys)
    read_generation_config(model, ref)
    if splits:
        _divide_target(model, splits, request.ranks)
    loaded: PreTrainedModel = model.to(request.device)
    return loaded


def _divide_target(
    model: PreTrainedModel, splits: Splits, ranks: Ranks, read: Collection[str] = ()
) -> None:
    divide(model, {name: split for name, split in splits.items() if name != LM_HEAD}, ranks, read)
    if LM_HEAD in splits:
        divide_lm_head(model, ranks)


def _load_head(plan: LoadingPlan, target: Target) -> DraftHead | None:
    if plan.family is None or plan.head_files is None:
        return None
    with torch.device("meta"):
        head = make_head(plan.family, target.model, plan.head_files.forms)
    read_head(head, plan.head_files)
    target.watch_layers(head.aux_layers)
    _reduce_vocabulary(plan, head, target)
    _divide_head(plan, head, target)
    cast_head(head, target)
    return head.to(target.device).eval()


def _reduce_vocabulary(plan: LoadingPlan, head: DraftHead, target: Target) -> None:
    """Cut the output matrices of a head to the tokens that the plan has, ahead of a division."""
    if plan.draft_tokens is None:
        return
    ids = torch.tensor(plan.draft_tokens.ids)
    ranks = plan.request.ranks if target.divides_vocabulary else ALONE
    reduce_outputs(head, target.lm_head, ids, target.device, ranks)


def _divide_head(plan: LoadingPlan, head: DraftHead, target: Target) -> None:
    divided: set[int] = set()
    for module in head.mtp_modules:
        splits = _block_splits(plan, head, module, target) if plan.request.divided_head else {}
        divide(module, splits, plan.request.ranks)
        if module.output is not None and LM_HEAD in target.splits:
            # Modules of a reduced vocabulary share one matrix.
            if id(module.output) not in divided:
                divide_vocabulary(module.output, plan.request.ranks)
            divided.add(id(module.output))
            splits = {**splits, HEAD_OUTPUT: Split(0)}
        module.splits = splits


def _block_splits(plan: LoadingPlan, head: DraftHead, module: MtpModule, target: Target) -> Splits:
    num_ranks = plan.request.ranks.size
    num_kv_heads = plan.skeleton.kv.num_kv_heads[module.layer_idx]
    if num_ranks > 1 and head.family.reads_aux:
        return drafter_splits(head, num_ranks, num_kv_heads)
    return block_splits(target.splits, module, kv_copies(num_kv_heads, num_ranks))


def _make_target(plan: LoadingPlan, splits: Splits) -> PreTrainedModel:
    ranks = plan.request.ranks

    # Scales belong to whole weights, so FP8 weights are divided after they are quantised.
    late = {name: split for name, split in splits.items() if name in plan.skeleton.scaled}
    drawn = {name: s for name, s in splits.items() if name not in late and name != LM_HEAD}

    def keep(name: str, whole: Tensor) -> Tensor:
        return drawn[name].part(whole, ranks) if name in drawn else whole

    def keep_quantised(model: PreTrainedModel, names: list[str]) -> None:
        divide(model, {name: late[name] for name in names if name in late}, ranks)

    model = random_target(plan, keep, keep_quantised, **_implementations(plan))
    install_forwards(model, drawn)
    if LM_HEAD in splits:
        divide_lm_head(model, ranks)
    return model


def _make_head(plan: LoadingPlan, target: Target) -> DraftHead | None:
    family = plan.family
    if family is None:
        return None
    assert plan.request.preset is not None
    forms = preset_forms(PRESETS[plan.request.preset], plan.request.mtp_modules)
    with torch.device("meta"):
        head = DraftHead(family, target.model, *forms)
    cast_head(head.eval(), target)
    draw_head(head, target.model, plan.request.device)
    quantise_parameters(head, plan.skeleton.head_scaled)
    _reduce_vocabulary(plan, head, target)
    _divide_head(plan, head, target)
    return head


# Rotary frequencies of a head's own, which transformers' models keep so.
_IN_FLOAT32 = ("rotary.inv_freq", "rotary.original_inv_freq")


def cast_head(head: DraftHead, target: Target) -> None:
    """Cast the head to the target's dtype, in place.

    What transformers keeps in float32 in the target's own layers stays so in the head. For example,
    a router's correction added in bfloat16 chooses other experts. FP8 weights and their scales stay
    too.
    """
    keeps = kept_in_float32(target.model, target.dtype)
    for module_name, module in head.named_modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                is_float = tensor is not None and tensor.is_floating_point()
                if tensor is not None and is_float and not is_quantised(module, name):
                    path = f"{module_name}.{name}"
                    is_kept = path.endswith(_IN_FLOAT32) or keeps(path)
                    tensor.data = tensor.data.to(torch.float32 if is_kept else target.dtype)


def _num_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
