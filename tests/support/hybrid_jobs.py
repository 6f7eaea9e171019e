"""What ranks are asked of models whose heads they divide unevenly: every rank imports this."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cgbench.checks.reference import Plain
from cgbench.compile.layers import compile_forwards
from cgbench.engine.acceptance import Greedy, shared_rule
from cgbench.engine.kv import KvCache
from cgbench.engine.runner import EagerRunner
from cgbench.floor.work import rank_work
from cgbench.models.fingerprint import fingerprint
from cgbench.models.loader import LoadedModel
from cgbench.parallel.ranks import Ranks, gathered
from tests.support.rank_jobs import Counted, counted, held, load
from tests.support.tiny import decode_prompts, make_speculator, make_state, random_prompts
from tests.support.tracing import traced_layers

VOCABULARY = 8
"""So small that random heads draft right now and then."""
PROMPTS = [[7], *random_prompts(4, vocab=VOCABULARY)]
MAX_NEW_TOKENS = 6
Cases = tuple[tuple[int, int], ...]
ONE_AND_FIVE: Cases = ((1, 1), (3, 5))
FIVE_AND_ONE: Cases = ((1, 5), (3, 1))
"""Drafts, and requests of unequal lengths."""

Decoded = tuple[list[list[int]], list[list[int]]]
"""Tokens and acceptance, by request."""


@dataclass(frozen=True)
class Divided:
    """What a model did on some number of ranks, and what a rank holds of it.

    ``plain`` are transformers' own tokens after the second prompt, and what its two attentions
    differ by. They are asked where ranks hold copies of a KV head. ``state_bytes`` are a request's.
    ``counted`` is the floor's account, and ``held`` are the weights.
    """

    fingerprint: str
    decoded: dict[tuple[int, int], Decoded]
    plain: tuple[list[int], float] | None
    kv_heads: set[int]
    state_bytes: int
    cache_bytes: int
    counted_states: int
    counted: Counted
    held: Counted


def tell_divided(
    folders: dict[str, Path],
    compiled: str | None,
    cases: dict[str, Cases],
    *,
    ranks: Ranks,
) -> list[tuple[dict[str, Divided], Decoded | None]]:
    """Everything of every rank, in one start.

    The model ``compiled`` is decoded at k = 1 once more. The target's layers are compiled on rank 0
    then, traced and run as traced. The other ranks have plain ones, and exchange the same.
    """
    torch.set_num_threads(1)
    told, traced = {}, None
    for name, folder in folders.items():
        model = load(folder, "divided", ranks)
        told[name] = tell(model, cases[name])
        if name == compiled:
            with traced_layers():
                if ranks.is_first:
                    torch._dynamo.reset()
                    compile_forwards(model.target, None)
                traced = decode(model, 1, 5)
    return gathered((told, traced))


def tell(model: LoadedModel, cases: Cases) -> Divided:
    work = rank_work(model)
    conv = sum(
        parameter.numel()
        for name, parameter in model.target.backbone.named_parameters()
        if "conv1d" in name
    )
    cache = KvCache(
        model.kv_shapes,
        max_batch_size=1,
        room=1,
        dtype=torch.float32,
        device=torch.device("cpu"),
        state_shapes=model.state_shapes,
    )
    recurrent = cache.recurrent
    return Divided(
        fingerprint(model.target, model.head),
        {case: decode(model, *case) for case in cases},
        plainly(model) if model.skeleton.kv_copies(model.ranks.size) > 1 else None,
        {keys[0] for keys, _ in model.kv_shapes.values()},
        sum(shape.num_bytes(4) for shape in model.state_shapes.values()),
        0 if recurrent is None else sum(each.nbytes for each in recurrent.tensors().values()),
        sum(shape.num_bytes(4) for shape in work.target.states),
        counted(model),
        # The floor leaves the convolution's few weights out.
        replace(held(model), target=held(model).target - conv),
    )


def plainly(model: LoadedModel) -> tuple[list[int], float]:
    prompt = tuple(PROMPTS[1])
    plain = Plain(model.target, [prompt])
    return plain.tokens(prompt, MAX_NEW_TOKENS), plain.noise


def decode(model: LoadedModel, k: int, size: int) -> Decoded:
    """Decode the first ``size`` prompts, all of them in one batch."""
    accept = shared_rule(Greedy(), model.target)
    spec = make_speculator(model, max_batch_size=size, room=48, accept=accept, max_spec_tokens=k)
    runner = EagerRunner(spec, make_state(spec, k, size))
    out = decode_prompts(spec, runner, PROMPTS[:size], MAX_NEW_TOKENS)
    return out.token_ids, out.accepted
