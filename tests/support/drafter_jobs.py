"""What ranks are asked of drafters and targets that others deploy: every rank imports this."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cgbench.checks.reference import Plain, reference_draft_logits
from cgbench.compile.layers import compile_forwards
from cgbench.engine.acceptance import Greedy, shared_rule
from cgbench.engine.iteration import iteration
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.floor.work import rank_work
from cgbench.models import loader
from cgbench.models.division import shards
from cgbench.models.division.splits import Split, Splits
from cgbench.models.heads.aux_head import AuxHead
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.parallel.collectives import watched_collectives
from cgbench.parallel.ranks import Ranks, gathered
from tests.support.rank_jobs import (
    GREEDY,
    MAX_NEW_TOKENS,
    PROMPTS,
    Counted,
    Ids,
    Rule,
    Told,
    matrix_elements,
    rows_of,
    tell,
)
from tests.support.tiny import make_speculator, make_state
from tests.support.tracing import traced_layers

GREEDILY: tuple[Rule, ...] = ((1, Greedy()), GREEDY)
"""Three requests of unequal lengths together."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, its head's folder if that is one of its own, and how ranks hold the head."""

    target: Path
    head: Path | None = None
    placement: str = "divided"
    ranked: Path | None = None
    """The file that ranks the tokens of a reduced draft vocabulary."""
    rules: tuple[Rule, ...] = GREEDILY
    compiled: int = 0
    """On how many ranks the target's layers are compiled at last, and a drafter's. Plain layers of
    the others exchange the same, mixtures with shared experts apart."""
    reads_plain: bool = False
    """Whether transformers' own attention is asked too, as the audit's reference asks it."""


@dataclass(frozen=True)
class Seen:
    """What a model did on some number of ranks, and what a rank holds of it.

    ``drafts`` are those of the audit's reference after the second prompt. ``counted`` is the
    floor's account. ``plain`` are transformers' own tokens, and what its two attentions differ by.
    """

    told: Told
    reference: list[int]
    counted: Counted
    held: Counted
    collectives: dict[int, list[str]]
    plain: tuple[list[int], float] | None
    compiled: Ids | None


def see_all(cases: dict[str, Case], *, ranks: Ranks) -> list[dict[str, Seen]]:
    """Everything of every rank, in one start."""
    torch.set_num_threads(1)
    return gathered({name: see(case, ranks) for name, case in cases.items()})


def load_case(case: Case, ranks: Ranks) -> LoadedModel:
    head, ranked = (None if each is None else str(each) for each in (case.head, case.ranked))
    where = torch.device("cpu"), torch.float32
    is_divided = case.placement == "divided"
    how = {"divided_head": is_divided, "draft_vocab_from": ranked}
    return load_model(Loading(str(case.target), head, True, *where, ranks=ranks, **how))


def see(case: Case, ranks: Ranks) -> Seen:
    model = load_case(case, ranks)
    told = tell(model, case.rules)
    return Seen(
        told,
        reference_drafts(model),
        counted(model),
        held(model),
        {} if ranks.size == 1 else {k: crossed(model, k) for k in (1, 3)},
        plainly(model) if case.reads_plain else None,
        None if ranks.size == 1 or not case.compiled else compiled_rows(model, case.compiled),
    )


def reference_drafts(model: LoadedModel) -> list[int]:
    assert model.head is not None
    logits = reference_draft_logits(model.target, model.head, PROMPTS[1], 3)
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def crossed(model: LoadedModel, k: int) -> list[str]:
    """The collectives of one iteration, in order."""
    accept = shared_rule(Greedy(), model.target)
    spec = make_speculator(model, max_batch_size=1, room=64, accept=accept, max_spec_tokens=k)
    state = make_state(spec, k, 1)
    prefilled = prefill(spec, PROMPTS[:1], max_num_tokens=64)
    begin_decoding(spec, state, prefilled, tokens_left=MAX_NEW_TOKENS)
    with watched_collectives() as seen:
        iteration(spec, state.rows(1))
    return [call.kind for call in seen]


def plainly(model: LoadedModel) -> tuple[list[int], float]:
    prompt = tuple(PROMPTS[1])
    plain = Plain(model.target, [prompt])
    return plain.tokens(prompt, MAX_NEW_TOKENS), plain.noise


def compiled_rows(model: LoadedModel, num_compiled: int) -> Ids:
    """Tokens and drafts at k = 1, on the first ranks through layers that are traced and run as
    traced."""
    head = model.head if isinstance(model.head, AuxHead) else None
    with traced_layers() as graphs:
        if is_compiled := model.ranks.rank < num_compiled:
            torch._dynamo.reset()
            compile_forwards(model.target, head)
        rows = rows_of(model)
        assert bool(graphs) == is_compiled
    return rows


def counted(model: LoadedModel) -> Counted:
    """By the floor: the head's first module as draft 1 runs it, and its output if it has one."""
    work = rank_work(model)
    head = 0
    for module in work.modules:
        own = () if module.output == work.lm_head else module.output.products
        products = (*(module.first or module.forward).products, *own)
        head += sum(each.num_elements * each.num_experts for each in products)
    target, lm_head = (
        sum(each.num_elements * each.num_experts for each in forward.products)
        for forward in (work.target, work.lm_head)
    )
    of_head = (each for module in work.modules for each in module.forward.attentions)
    heads = [each.kv_heads for each in (*work.target.attentions, *of_head)]
    return Counted(target, lm_head, head, heads)


def held(model: LoadedModel) -> Counted:
    target, head = model.target, model.head
    assert head is not None
    embeddings = (each.embedding for each in head.mtp_modules if each.embedding is not None)
    return Counted(
        matrix_elements(target.backbone) - target.model.get_input_embeddings().weight.numel(),
        target.model.get_output_embeddings().weight.numel(),
        matrix_elements(head) - sum(map(matrix_elements, embeddings)),
        [keys[0] for _, (keys, _) in sorted(model.kv_shapes.items())],
    )


def see_faults(cases: dict[str, Case], *, ranks: Ranks) -> list[dict[str, Told]]:
    """What every rank does where rank 1 keeps rank 0's part of a weight, by its name's end."""
    told = {}
    for ending, case in cases.items():
        with first_part(ending):
            told[ending] = tell(load_case(case, ranks), (GREEDY,))
    return gathered(told)


@contextmanager
def first_part(ending: str) -> Iterator[None]:
    """Every rank keeps rank 0's part of the weights whose names end so."""
    real = shards._part
    names: list[str] = []

    def divide(module: nn.Module, splits: Splits, ranks: Ranks, *read: Any) -> None:
        for name, split in splits.items():
            names.append(name)
            shards.divide(module, {name: split}, ranks, *read)

    def part(parameter: Tensor | None, split: Split, ranks: Ranks) -> Tensor:
        if not names[-1].endswith(ending):
            return real(parameter, split, ranks)
        assert parameter is not None
        return split.part(shards._whole(parameter).detach(), Ranks(0, ranks.size))

    with mock.patch.object(shards, "_part", part), mock.patch.object(loader, "divide", divide):
        yield
    assert any(name.endswith(ending) for name in names)
