"""From a run's arguments to what is measured: device, model, workload, deployment, record."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch

import cgbench
from cgbench.engine.acceptance_flag import parse_acceptance
from cgbench.engine.deployment import Deployment, deploy
from cgbench.engine.memory import check_memory
from cgbench.errors import BadInputError, DeviceError, OutOfMemoryError
from cgbench.inputs import check_whole
from cgbench.measure.rank_facts import parallel_facts
from cgbench.measure.session import check_prefill, room_for
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.head_wiring import HeadOverrides, wiring_of
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import ModelRequest, plan_loading
from cgbench.models.presets import PRESETS, default_golden, golden_for
from cgbench.models.support import check_capturable
from cgbench.parallel.ranks import tp_size
from cgbench.planning import CapturePlan
from cgbench.request.acceptance_lengths import GoldenLength, parse_length
from cgbench.request.model_ref import preset_name
from cgbench.request.options import DEFAULT_MIN_TIME_S, DEFAULT_PRECISION, RunOptions
from cgbench.rundir.environment import environment
from cgbench.rundir.record import PlanFacts, RunRecord
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

DEFAULT_ITERATIONS = {"cuda": 24, "cpu": 16}
DEFAULT_MAX_TIME_S = {"cuda": 30.0, "cpu": 10.0}
DEFAULT_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}

NO_GRAPHS_ON_CPU = "no graphs here: CUDA graphs need a CUDA device, so only scope eager is measured"

GOLDEN_BY_DEFAULT = (
    "random weights accept no draft: drafts are kept at {}, the mean acceptance length of {} "
    "({}), which --acceptance changes"
)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a session needs, but for what is measured of the device; and ``notes``, which are to
    be told to the user."""

    deployment: Deployment
    options: RunOptions
    workload: Workload
    notes: tuple[str, ...]


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is a device. Raises ``DeviceError`` for CUDA without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: no CUDA device is available; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def make_options(arguments: dict[str, Any], device: torch.device) -> tuple[RunOptions, list[str]]:
    """Checked options and what to tell the user about them. Plans are checked here too, so that a
    bad size costs no loading.

    Raises ``BadInputError`` or ``PlanError``.
    """
    on_cpu = device.type == "cpu"
    max_num_seqs, iterations = arguments["max_num_seqs"], arguments["iterations"]
    acceptance, stated = arguments["acceptance"], _golden_of_preset(arguments)
    options = RunOptions(
        spec_tokens=tuple(sorted({0, *arguments["spec_tokens"]})),
        batch_sizes=tuple(arguments["batch_sizes"]),
        scopes=(Scope.EAGER,) if on_cpu else tuple(map(Scope, arguments["scopes"])),
        max_batch_size=max(arguments["batch_sizes"]) if max_num_seqs is None else max_num_seqs,
        policy=arguments["policy"],
        capture_sizes=tuple(arguments["capture_sizes"]),
        capture_unit=arguments["capture_unit"],
        role=arguments["role"],
        max_num_batched_tokens=arguments["max_num_batched_tokens"],
        max_new_tokens=arguments["max_new_tokens"],
        context_len=arguments["context_len"],
        iterations=DEFAULT_ITERATIONS[device.type] if iterations is None else iterations,
        acceptance=_acceptance(acceptance, stated),
        ignore_eos=arguments["ignore_eos"],
        seed=arguments["seed"],
        nvtx=arguments.get("nvtx", False),
        cold_l2=arguments["cold_l2"],
        compile_mode=arguments["compile"],
        **_stopping(arguments, device),
        tp_size=tp_size(),
    )
    if on_cpu and options.cold_l2:
        raise DeviceError("--cold-l2: flushes a GPU's cache; there is none with --device cpu")
    if on_cpu and options.nvtx:
        raise DeviceError("--nvtx: ranges need --device cuda; on a CPU profile with torch's own")
    if arguments["head"] is not None and not options.max_spec_tokens:
        raise BadInputError("--head: --spec-tokens 0 runs no head; drop one of the two")
    # Part of a row's key: one spelling for equal rules.
    rule = parse_acceptance(options.acceptance, options.spec_tokens)
    options = replace(options, acceptance=str(rule))
    warnings = [f"k={k}: {text}" for k, plan in options.plans().items() for text in plan.warnings]
    notes = [NO_GRAPHS_ON_CPU] if on_cpu else warnings
    if acceptance is None and stated:
        notes.append(_golden_words(stated, options.spec_tokens))
    return options, notes


def _stopping(arguments: dict[str, Any], device: torch.device) -> dict[str, float]:
    """When the timed pass ends, as ``RunOptions`` has it."""
    precision, least, most = (arguments[name] for name in ("precision", "min_time", "max_time"))
    max_time_s = DEFAULT_MAX_TIME_S[device.type] if most is None else most
    return {
        "precision": DEFAULT_PRECISION if precision is None else precision,
        "min_time_s": min(DEFAULT_MIN_TIME_S, max_time_s) if least is None else least,
        "max_time_s": max_time_s,
    }


def _acceptance(asked: str | None, stated: GoldenLength | None) -> str:
    if stated is not None:
        return str(stated)
    return "greedy" if asked is None else asked


def _golden_of_preset(arguments: dict[str, Any]) -> GoldenLength | None:
    """The golden length of a preset's drafts: its family's by default, or the one that is asked
    for; marked as borrowed where it is another model's. None for any other rule or model."""
    name, acceptance = preset_name(arguments["model"]), arguments["acceptance"]
    preset = PRESETS.get(name) if name else None
    if preset is None or not max(arguments["spec_tokens"]):
        return None
    if acceptance is None:
        return default_golden(preset)
    asked = parse_length(acceptance)
    return golden_for(preset, asked.row) if isinstance(asked, GoldenLength) else None


def _golden_words(golden: GoldenLength, spec_tokens: Sequence[int]) -> str:
    lengths = ", ".join(f"{golden.at(k)} at k = {k}" for k in spec_tokens if k)
    return GOLDEN_BY_DEFAULT.format(golden, golden.row.model, lengths)


def model_request(
    arguments: dict[str, Any], device: torch.device, *, with_head: bool
) -> ModelRequest:
    """What the flags about the model ask for."""
    name = arguments["dtype"]
    return ModelRequest(
        ref=arguments["model"],
        head_ref=arguments["head"],
        with_head=with_head,
        device=device,
        dtype=DEFAULT_DTYPE[device.type] if name == "auto" else getattr(torch, name),
        seed=arguments["seed"],
        overrides=head_overrides(arguments),
        divided_head=arguments.get("tp_head") == "divided",
        routing=chosen_routing(arguments),
    )


def chosen_routing(arguments: dict[str, Any]) -> Routing:
    """The router of random weights chooses like none in service, so a preset's experts are drawn
    evenly unless ``--routing`` says otherwise."""
    asked = arguments.get("routing")
    if asked is not None:
        return Routing(asked)
    is_preset = preset_name(arguments["model"]) is not None
    return Routing.BALANCED if is_preset else Routing.MODEL


def head_overrides(arguments: dict[str, Any]) -> HeadOverrides:
    """The head's wiring that the flags state; ``head_`` starts each in the arguments."""
    names = HeadOverrides.__dataclass_fields__
    return HeadOverrides(**{name: arguments[f"head_{name}"] for name in names})


def load(arguments: dict[str, Any], options: RunOptions, device: torch.device) -> LoadedModel:
    """The target, and its head unless only k = 0 is measured.

    Raises ``ModelError`` and its kin, ``OutOfMemoryError`` where the weights do not fit.
    """
    request = model_request(arguments, device, with_head=options.max_spec_tokens > 0)
    plan = plan_loading(request)
    if arguments.get("routing") == Routing.BALANCED and plan.routing is Routing.MODEL:
        raise BadInputError(f"--routing balanced: {request.ref} has no experts; drop the flag")
    if set(options.scopes) - {Scope.EAGER}:
        check_capturable(plan.config)
    check_memory(plan, options)
    try:
        return load_model(plan)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory loading {request.ref}: its weights do not fit the device; "
            "try --dtype bfloat16 or a smaller MODEL"
        ) from error


def read_texts(arguments: dict[str, Any]) -> PromptTexts | None:
    """The prompts' texts, from ``--prompts`` or the shipped ones; None for random tokens.

    Raises ``BadInputError`` where they cannot be read, or where MODEL could not read them.
    """
    model, name, num_prompts = (arguments[key] for key in ("model", "prompts", "num_prompts"))
    if num_prompts is not None:
        check_whole("--num-prompts", num_prompts, 1)
    is_preset = preset_name(model) is not None
    if is_preset and name not in (None, RANDOM):
        raise BadInputError(f"--prompts {name}: {model} has no tokenizer; use random")
    if not is_preset and name != RANDOM:
        return read_named(name, num_prompts)
    if arguments["chat_template"] == "on":
        raise BadInputError("--chat-template on: the prompts are random tokens, not text")
    return None


def make_workload(
    arguments: dict[str, Any],
    options: RunOptions,
    model: LoadedModel,
    texts: PromptTexts | None,
) -> Workload:
    """The texts as tokens; without texts random tokens, ``--context-len`` a prompt.

    Raises ``BadInputError`` where there is no tokenizer, or one that cannot read a prompt.
    """
    if texts is None:
        batch_size = max(options.batch_sizes)
        count = min(batch_size, arguments["num_prompts"] or batch_size)
        return random_workload(model.target.vocab_size, count, options.context_len, options.seed)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise BadInputError(model.tokenizer_problem)
    chat_template = uses_template(tokenizer, texts, arguments["chat_template"])
    encode = make_encode(tokenizer, texts, chat_template=chat_template)
    return text_workload(texts, encode, model.target.last_token, chat_template=chat_template)


def make_deployment(
    options: RunOptions, model: LoadedModel, workload: Workload, attention: str
) -> Deployment:
    """Buffers for everything that will be measured; ``attention`` names a backend that the device
    can run.

    Raises ``BadInputError`` for lengths that do not fit, and ``OutOfMemoryError`` where the KV
    cache does not.
    """
    check_prefill(options, workload)
    plans = options.plans()
    room = room_for(options, workload, model.target.max_positions)
    accept = parse_acceptance(options.acceptance, options.spec_tokens)
    try:
        return deploy(
            model, plans, options.deployment, room=room, attention=attention, accept=accept
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"out of memory for the KV cache of {options.max_batch_size + 1} slots of {room} "
            "tokens: lower --max-num-seqs, --context-len or --max-new-tokens"
        ) from error


def make_record(arguments: dict[str, Any], setup: Setup) -> RunRecord:
    """``run.json`` as it stands before the first measurement."""
    deployment, options, workload = setup.deployment, setup.options, setup.workload
    model = deployment.model
    return RunRecord(
        cgbench_version=cgbench.__version__,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        arguments=arguments,
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
            "head_wiring": None if model.head is None else wiring_of(model.head.family),
            **({"tensor_parallel": parallel_facts(model)} if tp_size() > 1 else {}),
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


def _module_facts(model: LoadedModel) -> str | None:
    if model.head is None:
        return None
    return f"module 1 of {model.num_head_modules}, reused for every draft step"


def _weight_bytes(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.nbytes for p in module.parameters())


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
