"""What ranks are asked of drafters and targets that others deploy: every rank imports this."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from cgbench.checks.reference import Plain, reference_draft_logits
from cgbench.compile.layers import compile_forwards
from cgbench.engine.acceptance import Greedy
from cgbench.floor.work import rank_work
from cgbench.models import loader
from cgbench.models.division import shards
from cgbench.models.division.splits import Split, Splits
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.parallel.collectives import Collective, watched_collectives
from cgbench.parallel.ranks import Ranks, gathered
from tests.support.rank_jobs import (
    GREEDY,
    MAX_NEW_TOKENS,
    PROMPTS,
    SAMPLED,
    Counted,
    Ids,
    Rule,
    Told,
    decode,
    matrix_elements,
    rows_of,
    tell,
)
from tests.support.tracing import traced_layers

RULES: tuple[Rule, ...] = ((1, Greedy()), GREEDY, SAMPLED)
"""Greedily three requests of unequal lengths together, and two by the rule that draws."""


@dataclass(frozen=True)
class Case:
    """A checkpoint, its head's folder if that is one of its own, and how ranks hold the head."""

    target: Path
    head: Path | None = None
    placement: str = "divided"
    is_compiled: bool = False
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
    collectives: dict[int, list[Collective]]
    plain: tuple[list[int], float] | None
    compiled: Ids | None


def see_all(cases: dict[str, Case], *, ranks: Ranks) -> list[dict[str, Seen]]:
    """Everything of every rank, in one start."""
    torch.set_num_threads(1)
    return gathered({name: see(case, ranks) for name, case in cases.items()})


def load_case(case: Case, ranks: Ranks) -> LoadedModel:
    head = None if case.head is None else str(case.head)
    where = torch.device("cpu"), torch.float32
    is_divided = case.placement == "divided"
    return load_model(
        Loading(str(case.target), head, True, *where, divided_head=is_divided, ranks=ranks)
    )


def see(case: Case, ranks: Ranks) -> Seen:
    model = load_case(case, ranks)
    told = tell(model, RULES)
    return Seen(
        told,
        reference_drafts(model),
        counted(model),
        held(model),
        {k: crossed(model, k) for k in (1, 3)},
        plainly(model) if case.reads_plain else None,
        compiled_rows(model) if case.is_compiled else None,
    )


def reference_drafts(model: LoadedModel) -> list[int]:
    assert model.head is not None
    logits = reference_draft_logits(model.target, model.head, PROMPTS[1], 3)
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def crossed(model: LoadedModel, k: int) -> list[Collective]:
    """What crosses the ranks for one request, in order."""
    with watched_collectives() as seen:
        decode(model, Greedy(), k, PROMPTS[:1])
    return seen


def plainly(model: LoadedModel) -> tuple[list[int], float]:
    prompt = tuple(PROMPTS[1])
    plain = Plain(model.target, [prompt])
    return plain.tokens(prompt, MAX_NEW_TOKENS), plain.noise


def compiled_rows(model: LoadedModel) -> Ids:
    """Tokens and drafts at k = 1 through layers that are traced and run as traced."""
    rows = rows_of(model)
    with traced_layers() as graphs:
        torch._dynamo.reset()
        compile_forwards(model.target, model.head)
        assert rows_of(model) == rows and graphs
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

    def divide(module: nn.Module, splits: Splits, ranks: Ranks) -> None:
        for name, split in splits.items():
            names.append(name)
            shards.divide(module, {name: split}, ranks)

    def part(parameter: Tensor | None, split: Split, ranks: Ranks) -> Tensor:
        if not names[-1].endswith(ending):
            return real(parameter, split, ranks)
        assert parameter is not None
        return split.part(shards._whole(parameter).detach(), Ranks(0, ranks.size))

    with mock.patch.object(shards, "_part", part), mock.patch.object(loader, "divide", divide):
        yield
    assert any(name.endswith(ending) for name in names)
