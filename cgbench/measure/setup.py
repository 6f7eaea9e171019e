"""Turn a request into what is measured: device, model, workload, deployment and record."""

from dataclasses import dataclass
from datetime import UTC, datetime

import torch

import cgbench
from cgbench.engine.acceptance import rule_of
from cgbench.engine.backends import NamedBackend
from cgbench.engine.block_drafts import check_drafter
from cgbench.engine.deployment import Deployment, deploy
from cgbench.engine.memory import check_memory
from cgbench.errors import BadInputError, DeviceError, OutOfMemoryError
from cgbench.inputs import check_whole
from cgbench.measure.rank_facts import parallel_facts
from cgbench.measure.session import check_prefill, room_for
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.head_wiring import wiring_of
from cgbench.models.latent.latent_hook import latent_path
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import loading_of, modules_used, plan_loading
from cgbench.models.presets import PRESETS, default_golden, golden_for
from cgbench.models.router_rules import mixture_paths
from cgbench.models.support import check_capturable
from cgbench.parallel.ranks import Ranks
from cgbench.planning import CapturePlan
from cgbench.request.acceptance_lengths import GoldenLength, parse_length
from cgbench.request.choices import ChatTemplate
from cgbench.request.model_ref import preset_name
from cgbench.request.options import RunOptions
from cgbench.request.parts import WorkloadRequest
from cgbench.request.resolution import resolve
from cgbench.request.run_request import DecodeRequest
from cgbench.rundir.environment import environment
from cgbench.rundir.record import RunRecord
from cgbench.rundir.record_parts import PlanFacts
from cgbench.words import Routing, Scope
from cgbench.workload.chat import make_encode, uses_template
from cgbench.workload.load import (
    WORKLOAD_VERSION,
    Workload,
    random_workload,
    text_workload,
)
from cgbench.workload.prompt_files import PromptTexts
from cgbench.workload.prompts import RANDOM, read_named


@dataclass(frozen=True, slots=True)
class Setup:
    """A ``Setup`` holds what a session needs, except what is measured of the device. ``notes`` are
    lines to print for the user.
    """

    deployment: Deployment
    options: RunOptions
    workload: Workload
    notes: tuple[str, ...]


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` asks for. ``auto`` is CUDA if there is a device. Raise
    ``DeviceError`` if CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: no CUDA device is available. Use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def make_options(
    request: DecodeRequest, device: torch.device, ranks: Ranks
) -> tuple[RunOptions, list[str]]:
    """Return the request's options and notes, resolved for this device, its ranks and the model's
    own golden length.
    """
    golden = _golden_of_preset(request)
    return resolve(request, device_type=device.type, tp_size=ranks.size, golden=golden)


def _golden_of_preset(request: DecodeRequest) -> GoldenLength | None:
    """Return the golden length of a preset's drafts, or None for any other rule or model.

    It is the one that is asked for, or by default that of the preset's family. It is marked as
    borrowed if it is another model's.
    """
    name, acceptance = preset_name(request.model.ref), request.workload.acceptance
    preset = PRESETS.get(name) if name else None
    if preset is None or not max(request.capture.spec_tokens):
        return None
    if acceptance is None:
        return default_golden(preset)
    asked = parse_length(acceptance)
    return golden_for(preset, asked.row) if isinstance(asked, GoldenLength) else None


def load(
    request: DecodeRequest,
    options: RunOptions,
    device: torch.device,
    ranks: Ranks,
    attention: NamedBackend,
) -> LoadedModel:
    """Load the target, and its head unless only k = 0 is measured.

    ``attention`` decides whether latent attention keeps latents.

    Raise ``BadInputError`` for balanced routing without experts, and for what a parallel drafter
    cannot do. Raise ``ModelError`` or a kin of it for a model that cannot be served, and
    ``OutOfMemoryError`` if the weights do not fit.
    """
    ref, with_head = request.model.ref, options.max_spec_tokens > 0
    loading = loading_of(
        request.model,
        request.sharing,
        device,
        with_head=with_head,
        seed=request.seed,
        ranks=ranks,
        keeps_latents=attention.keeps_latents,
    )
    plan = plan_loading(loading)
    if request.model.routing == Routing.BALANCED and plan.routing is Routing.MODEL:
        raise BadInputError(f"--routing balanced: {ref} has no experts. Drop the flag")
    check_drafter(plan.skeleton.head, options.max_spec_tokens, attention)
    if set(options.scopes) - {Scope.EAGER}:
        check_capturable(plan.config)
    check_memory(plan, options)
    try:
        return load_model(plan)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory loading {ref}: its weights do not fit the device. "
            "Try --dtype bfloat16 or a smaller MODEL"
        ) from error


def read_texts(request: DecodeRequest) -> PromptTexts | None:
    """Return the prompts' texts, from ``--prompts`` or the shipped ones. Return None for random
    tokens.

    Raise ``BadInputError`` if they cannot be read, or if MODEL has no tokenizer to read them.
    """
    model, workload = request.model.ref, request.workload
    name, num_prompts = workload.prompts, workload.num_prompts
    if num_prompts is not None:
        check_whole("--num-prompts", num_prompts, 1)
    is_preset = preset_name(model) is not None
    if is_preset and name not in (None, RANDOM):
        raise BadInputError(f"--prompts {name}: {model} has no tokenizer. Use random")
    if not is_preset and name != RANDOM:
        return read_named(name, num_prompts)
    if workload.chat_template == ChatTemplate.ON:
        raise BadInputError("--chat-template on: the prompts are random tokens, not text")
    return None


def make_workload(
    asked: WorkloadRequest, options: RunOptions, model: LoadedModel, texts: PromptTexts | None
) -> Workload:
    """Return the workload: the texts as tokens, or without texts random tokens, ``--context-len`` a
    prompt.

    Raise ``BadInputError`` if there is no tokenizer, or if it cannot read a prompt.
    """
    if texts is None:
        batch_size = max(options.batch_sizes)
        count = min(batch_size, asked.num_prompts or batch_size)
        return random_workload(model.target.vocab_size, count, options.context_len, options.seed)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise BadInputError(model.tokenizer_problem)
    chat_template = uses_template(tokenizer, texts, asked.chat_template)
    encode = make_encode(tokenizer, texts, chat_template=chat_template)
    return text_workload(texts, encode, model.target.last_token, chat_template=chat_template)


def make_deployment(
    options: RunOptions, model: LoadedModel, workload: Workload, attention: NamedBackend
) -> Deployment:
    """Allocate the buffers for everything that will be measured. The device must be able to run
    ``attention``.

    Raise ``BadInputError`` for lengths that do not fit, and ``OutOfMemoryError`` if the KV cache
    does not fit.
    """
    check_prefill(options, workload)
    plans = options.plans()
    room = room_for(options, workload, model.target.max_positions)
    accept = rule_of(options.acceptance)
    try:
        return deploy(
            model, plans, options.deployment, room=room, attention=attention, accept=accept
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory for the KV cache of {options.max_batch_size + 1} slots of {room} "
            "tokens: lower --max-num-seqs, --context-len or --max-new-tokens"
        ) from error


def make_record(request: DecodeRequest, setup: Setup) -> RunRecord:
    """Return ``run.json`` as it stands before the first measurement."""
    deployment, options, workload = setup.deployment, setup.options, setup.workload
    model = deployment.model
    record = RunRecord(
        cgbench_version=cgbench.__version__,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        arguments=request.to_record(),
        model={
            "label": model.label,
            "head": model.head_label,
            "random_weights": model.random_weights,
            "routing": model.routing,
            "fingerprint": fingerprint(model.target, model.head),
            "num_parameters": model.num_parameters,
            "head_num_parameters": model.head_num_parameters,
            "weight_bytes": _weight_bytes(model.target.model) + _weight_bytes(model.head),
            "kv_bytes": deployment.spec.cache.num_bytes,
            "mtp_modules": _module_facts(model),
            "head_aux_layers": None if model.head is None else [*model.head.aux_layers] or None,
            "head_wiring": None if model.head is None else wiring_of(model.head.family),
        },
        workload={
            "version": WORKLOAD_VERSION,
            "source": workload.source,
            "licence": workload.licence,
            "package": workload.package,
            "chat_template": workload.chat_template,
            "num_prompts": len(workload.prompts),
            "sha256": workload.sha256,
            "context_len": options.context_len,
            "context_band_tokens": options.band,
            "mean_context_len": options.mean_context_len,
            "precision": options.precision,
            "min_time_s": options.min_time_s,
            "max_time_s": options.max_time_s,
        },
        plans=[_plan_facts(plan) for plan in deployment.plans.values()],
        capture={} if deployment.compile_s is None else {"compile_s": deployment.compile_s},
        warnings=[*setup.notes],
    )
    if (paths := mixture_paths(model.target, model.head)) is not None:
        record.model["experts_path"], record.model["router_path"] = paths[:2]
        if paths.shared is not None:
            record.model["shared_expert_path"] = paths.shared
    if model.kv_format.is_fp8:
        dtype = str(model.target.dtype).removeprefix("torch.")
        record.model["kv_format"] = model.kv_format.words(dtype)
    if model.keeps_latents:
        record.model["latent_path"] = latent_path(model.target.backbone, model.head)
    if model.ranks.size > 1:
        record.model["tensor_parallel"] = parallel_facts(model)
    return record


def _module_facts(model: LoadedModel) -> str | None:
    if model.head is None:
        return None
    if model.head.family.is_parallel:
        return "parallel: one forward makes every draft"
    used = model.head.num_modules
    if used == 1:
        return f"module 1 of {model.num_head_modules}, reused for every draft step"
    reused = "the last reused for the steps past it"
    return f"{modules_used(used, model.num_head_modules)}, one a draft step, {reused}"


def _weight_bytes(module: torch.nn.Module | None) -> int:
    """Return the bytes of parameters, and of the scales of FP8 ones."""
    if module is None:
        return 0
    scales = [each for name, each in module.state_dict().items() if name.endswith("_scale")]
    return sum(tensor.nbytes for tensor in (*module.parameters(), *scales))


def _plan_facts(plan: CapturePlan) -> PlanFacts:
    return {
        "policy": plan.policy,
        "spec_tokens": plan.spec_tokens,
        "max_batch_size": plan.max_batch_size,
        "batch_sizes": plan.batch_sizes,
        "capture_tokens": plan.capture_tokens,
        "indivisible": plan.indivisible,
        "eager_batch_sizes": plan.eager_batch_sizes,
        "mean_padding": plan.mean_padding,
        "warnings": plan.warnings,
    }
