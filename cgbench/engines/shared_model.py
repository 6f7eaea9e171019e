"""Read what all engines share: MODEL's shape, its prompts, and the bytes that it needs."""

from pathlib import Path

import torch

from cgbench.engine.recurrent import cache_bytes
from cgbench.engines.engine_models import served_model
from cgbench.engines.engine_runs import SharedModel
from cgbench.errors import BadInputError
from cgbench.measure.group import draft_vocab_of
from cgbench.measure.setup import choose_device, read_texts
from cgbench.models.loading_plan import LoadingPlan, check_model_ref, loading_of, plan_loading
from cgbench.models.tokenizer import read_tokenizer
from cgbench.request.engines_request import EnginesRequest
from cgbench.request.parts import SharingRequest
from cgbench.rundir.environment import environment
from cgbench.workload.chat import make_encode, uses_template
from cgbench.workload.load import Workload, random_workload, text_workload


def shared_model(request: EnginesRequest, folder: Path) -> SharedModel:
    """Return what engines share. A preset's checkpoint folder is written to ``folder``/model.

    Raise any of ``cgbench.errors`` for a MODEL that cannot be read.
    """
    device = choose_device(request.device)
    check_model_ref(request.model.ref)
    loading = loading_of(
        request.model,
        SharingRequest(),
        device,
        with_head=max(request.spec_tokens) > 0,
        seed=request.seed,
        keeps_latents=device.type == "cuda",
    )
    plan = plan_loading(loading)
    skeleton, dtype = plan.skeleton, loading.dtype
    return SharedModel(
        label=plan.label,
        head_label=plan.head_label if skeleton.head is not None else "none",
        is_random=loading.preset is not None,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        routing=plan.routing,
        served=served_model(request.model.ref, folder / "model"),
        workload=_workload(request, plan),
        weight_bytes=skeleton.weight_bytes(dtype),
        head_bytes=skeleton.head_bytes(dtype),
        kv_bytes_per_token=skeleton.kv_bytes_per_token(dtype),
        state_bytes_per_slot=_state_bytes(plan, request, dtype),
        quant=str(plan.quant),
        mtp_modules=max(plan.num_modules, 1),
        draft_vocab=draft_vocab_of(skeleton.head, max(request.spec_tokens)),
        environment=environment(),
    )


def _state_bytes(plan: LoadingPlan, request: EnginesRequest, dtype: torch.dtype) -> int:
    query_len = max(request.spec_tokens) + 1
    return cache_bytes(plan.skeleton.kv.state_shapes, 1, query_len, dtype)


def _workload(request: EnginesRequest, plan: LoadingPlan) -> Workload:
    """Return the prompts, as a run has them. Raise ``BadInputError`` if there is no tokenizer."""
    texts = read_texts(request.run)
    target = plan.skeleton.target
    if texts is None:
        count, length = max(request.workload.batch_sizes), request.workload.context_len
        return random_workload(target.vocab_size, count, length, request.seed)
    tokenizer, problem = read_tokenizer(plan)
    if tokenizer is None:
        raise BadInputError(problem)
    template = uses_template(tokenizer, texts, request.workload.chat_template)
    encode = make_encode(tokenizer, texts, chat_template=template)
    return text_workload(texts, encode, target.last_token, chat_template=template)
