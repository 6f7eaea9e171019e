"""What two ranks and one process are both asked: every rank imports this module."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest import mock

import torch
from torch import Tensor

from cgbench.checks import equality, hidden, isolation, limits
from cgbench.checks.findings import Finding, over_ranks
from cgbench.checks.subject import Subject
from cgbench.compile.layers import compile_forwards
from cgbench.engine import backends, iteration
from cgbench.engine.acceptance import AcceptanceRule, Greedy, Sampled, shared_rule
from cgbench.engine.calls import Rows
from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import EagerRunner
from cgbench.engine.state import DecodeState
from cgbench.floor.telemetry import Reading, Watch
from cgbench.floor.work import rank_work
from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.kernels.row_updates import RowState, argmax
from cgbench.measure import rounds
from cgbench.measure.group import measure_group
from cgbench.measure.session import Session
from cgbench.models.fingerprint import fingerprint
from cgbench.models.heads.families import DEEPSEEK, MIMO
from cgbench.models.heads.head import HeadForm
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.models.presets import PRESETS, Preset
from cgbench.models.router_rules import OWN_PATH, mixture_paths
from cgbench.parallel.collectives import argmax_over_ranks, watched_collectives
from cgbench.parallel.ranks import Ranks, agreed, gathered
from cgbench.request.choices import KvDtype, QuantMode
from cgbench.workload.load import Workload
from tests.support.audited import make_tiny_subject
from tests.support.options import make_options
from tests.support.session import CONTEXT_LEN, session_of
from tests.support.tiny import (
    SHAPE,
    decode_prompts,
    load_tiny,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)
from tests.support.tracing import traced_layers

VOCABULARY = 8
"""So small that random heads draft right now and then."""
PROMPTS = random_prompts(5, vocab=VOCABULARY)
"""Of five lengths: three are decoded greedily in a batch, and two by another rule."""
MAX_NEW_TOKENS = 6
Ids: TypeAlias = list[list[int]]
Rule: TypeAlias = tuple[int, AcceptanceRule]
GREEDY: Rule = (3, Greedy())
SAMPLED: Rule = (3, Sampled(temperature=0.7))
TOP_P: Rule = (1, Sampled(top_p=0.9, drafts="greedy"))
HEADS = ("divided", "whole")
OWN = "own"
RULES: dict[str, tuple[Rule, ...]] = {
    "mimo divided": (GREEDY, SAMPLED, TOP_P),
    "mimo whole": (GREEDY, SAMPLED),
    "own whole": (GREEDY, TOP_P),
    "glm4_moe_lite divided": (GREEDY, SAMPLED),
}
"""Every rule with both kinds of head. Other models are decoded greedily."""
COMPILED = {
    "glm4_moe divided": 2,
    "glm4_moe_lite whole": 1,
}
"""On how many ranks layers are compiled: both kinds of head, and every sum over the ranks, of
products and of experts. GLM-4-MoE's operator adds up its shared expert and the others at once, and
plain modules one by one, so its ranks are alike. ``tell_fp8_kv`` compiles dense layers on one."""
SHARED_PATHS = {"glm4_moe_lite": f"{OWN_PATH} and products"}
"""transformers' plan leaves this shared expert whole on every rank, and divides the experts. So one
sum over the ranks cannot be of both. A head that is whole needs none."""
SMALL = SHAPE | {"model_type": "qwen3", "vocab_size": VOCABULARY}
TIED = Preset("tied", "a test", {**SMALL, "tie_word_embeddings": True})
WHOLE_VOCABULARY = Preset("odd", "a test", {**SMALL, "vocab_size": 9})


@dataclass(frozen=True)
class Told:
    """What a model did on some number of ranks."""

    fingerprint: str
    tokens: dict[str, Ids]
    accepted: dict[str, Ids]
    drafts: dict[str, list[Ids]]
    kv_heads: set[int]


@dataclass(frozen=True)
class Shared:
    """What a rank shares with the others: the same as with no other, or a part of it."""

    told: dict[str, Told]
    traced: dict[str, Ids]
    work: dict[str, tuple["Counted", "Counted"]]
    heads: dict[str, tuple[set[tuple[int, int]], int]]


def in_turn(*jobs: tuple[Callable[..., Any], tuple[Any, ...]], ranks: Ranks) -> list[Any]:
    """Each job's answer: to start ranks costs more than most jobs do."""
    torch.set_num_threads(1)
    return [job(*args, ranks=ranks) for job, args in jobs]


def tell_all(
    folders: dict[str, Path],
    presets: tuple[Preset, ...],
    without: tuple[str, ...] = (),
    *,
    ranks: Ranks,
) -> list[Shared]:
    """Everything of every rank, in one start: each checkpoint with both heads, but those named in
    ``without``, and each preset. Then what is decoded with compiled layers on one rank, beside the
    same without."""
    torch.set_num_threads(1)
    told, traced, work, heads = {}, {}, {}, {}
    for name in (f"{folder} {head}" for folder in folders for head in HEADS):
        if name in without:
            continue
        kind, head = name.split()
        model = load(folders[kind], head, ranks)
        told[name] = tell(model, RULES.get(name, (GREEDY,)))
        work[name], heads[name] = (counted(model), held(model)), heads_of(model)
        if name in COMPILED and ranks.size > 1:
            traced[name] = tell_compiled(model, kind, ranks.rank < COMPILED[name])
    with mock.patch.dict(PRESETS, {preset.name: preset for preset in presets}):
        for preset in presets:
            model = load(Path(f"preset:{preset.name}"), "divided", ranks)
            told[preset.name] = tell(model, (GREEDY,))
    return gathered(Shared(told, traced, work, heads))


def tell_compiled(model: LoadedModel, kind: str, is_compiled: bool) -> Ids:
    """What ``decoded_both_ways`` says. This rank's part of every expert goes through the operator,
    the shared one's too."""
    rows = decoded_both_ways(model, is_compiled)
    if is_compiled:
        paths = OWN_PATH, OWN_PATH, SHARED_PATHS.get(kind, OWN_PATH)
        assert mixture_paths(model.target, model.head) == paths
    return rows


def decoded_both_ways(model: LoadedModel, is_compiled: bool) -> Ids:
    """Tokens and drafts at k = 1. If this rank ``is_compiled``, they are the same through
    layers that are traced and run as traced."""
    rows = rows_of(model)
    with traced_layers() as graphs:
        if is_compiled:
            torch._dynamo.reset()
            compile_forwards(model.target, model.head)
        assert rows_of(model) == rows
        assert bool(graphs) == is_compiled
    return rows


def rows_of(model: LoadedModel) -> Ids:
    out = decode(model, Greedy(), 1, PROMPTS[:3], is_one_bucket=True)
    rows: Ids = [*out.token_ids, *chain(*out.drafts)]
    return rows


def load(ref: Path, head: str, ranks: Ranks, **how: Any) -> LoadedModel:
    where = torch.device("cpu"), torch.float32
    is_divided = head == "divided"
    loading = Loading(str(ref), None, True, *where, divided_head=is_divided, ranks=ranks, **how)
    return load_model(loading)


def tell(model: LoadedModel, rules: tuple[Rule, ...]) -> Told:
    tokens, accepted, drafts = {}, {}, {}
    for k, rule in rules:
        out = decode(model, rule, k, PROMPTS[:3] if rule == Greedy() else PROMPTS[3:])
        name = f"{rule} k={k}"
        tokens[name], accepted[name], drafts[name] = out.token_ids, out.accepted, out.drafts
    kv_heads = {keys[0] for keys, _ in model.kv_shapes.values()}
    return Told(fingerprint(model.target, model.head), tokens, accepted, drafts, kv_heads)


class NotingRunner(EagerRunner):
    """An eager runner that notes the drafts of unfinished requests after each iteration. It keeps
    the rows of those that end if ``is_one_bucket``: one left alone would have forms of its own."""

    def __init__(self, spec: Speculator, state: DecodeState, is_one_bucket: bool) -> None:
        super().__init__(spec, state)
        self.is_one_bucket = is_one_bucket
        self.drafts: list[Ids] = []

    def num_rows(self, batch_size: int) -> int:
        return len(self.state.full.active) if self.is_one_bucket else batch_size

    def step(self, batch_size: int) -> None:
        super().step(batch_size)
        rows = self.state.rows(batch_size)
        self.drafts.append(rows.drafts[rows.active > 0].tolist())


def decode(
    model: LoadedModel,
    rule: AcceptanceRule,
    k: int,
    prompts: list[list[int]],
    *,
    is_one_bucket: bool = False,
) -> Any:
    accept = shared_rule(rule, model.target)
    spec = make_speculator(model, max_batch_size=3, room=64, accept=accept)
    runner = NotingRunner(spec, make_state(spec, k, 3), is_one_bucket)
    out = decode_prompts(spec, runner, prompts, MAX_NEW_TOKENS)
    return SimpleNamespace(token_ids=out.token_ids, accepted=out.accepted, drafts=runner.drafts)


def look_at_collectives(folder: Path, *, ranks: Ranks) -> dict[str, Any]:
    """What crosses the ranks in a greedy iteration, and an argmax with ties."""
    model = load(folder, "divided", ranks)
    with watched_collectives() as seen:
        decode(model, Greedy(), 3, PROMPTS[:1])
    tied = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 7.0]])
    part = tied.chunk(2, 1)[ranks.rank]
    return {
        "gathered": {call.shape for call in seen if call.kind == "all_gather"},
        "kinds": {call.kind for call in seen},
        "argmax": gathered(argmax_over_ranks(part, argmax).tolist()),
        "agreed": gathered(agreed(f"rank {ranks.rank}'s")),
    }


@dataclass(frozen=True)
class Counted:
    """Weights of the target's layers, of lm_head and of the head, and the KV heads of each layer:
    by the floor's account, or as this rank holds them."""

    target: int
    lm_head: int
    head: int
    kv_heads: list[int]


def heads_of(model: LoadedModel) -> tuple[set[tuple[int, int]], int]:
    """Query heads and values read a token by the floor's account, and bytes of KV a token as this
    rank keeps them, of the target and a head."""
    work = rank_work(model)
    attentions = (*work.target.attentions, *work.modules[0].forward.attentions)
    shapes = {(each.query_heads, each.row_elements) for each in attentions}
    return shapes, sum(heads * size for shape in model.kv_shapes.values() for heads, size in shape)


def counted(model: LoadedModel) -> Counted:
    work = rank_work(model)
    (head,) = work.modules
    sums = [
        sum(product.num_elements * product.num_experts for product in forward.products)
        for forward in (work.target, work.lm_head, head.forward)
    ]
    own = () if head.output == work.lm_head else head.output.products
    sums[-1] += sum(product.num_elements for product in own)
    attentions = (*work.target.attentions, *head.forward.attentions)
    return Counted(*sums, [each.kv_heads for each in attentions])


def held(model: LoadedModel) -> Counted:
    target, head = model.target, model.head
    assert head is not None
    embedding = target.model.get_input_embeddings().weight.numel()
    return Counted(
        matrix_elements(target.backbone) - embedding,
        target.model.get_output_embeddings().weight.numel(),
        matrix_elements(head) - (0 if head.embedding is None else matrix_elements(head.embedding)),
        [keys[0] for _, (keys, _) in sorted(model.kv_shapes.items())],
    )


def matrix_elements(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)


class Warm:
    """Telemetry of a GPU that is too hot, on rank 1 alone, when it is asked for the tenth time."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.reads = ranks, 0

    def read(self) -> Reading:
        self.reads += 1
        is_hot = self.ranks.rank == 1 and self.reads == 10
        reasons = frozenset({"hw_thermal"} if is_hot else ())
        return Reading(1980, 3201, 45, 300.0, reasons, frozenset())


def short_session(folder: Path, ranks: Ranks) -> Session:
    """One wave of two requests, with drafts and without."""
    options = make_options(
        spec_tokens=(0, 1),
        batch_sizes=(2,),
        max_batch_size=2,
        max_new_tokens=5,
        context_len=CONTEXT_LEN,
        iterations=1,
    )
    prompts = tuple(map(tuple, PROMPTS[:2]))
    return session_of(load_tiny(folder, ranks=ranks), options, Workload("a test", prompts))


def measure_by_other_clocks(folder: Path, *, ranks: Ranks) -> list[tuple[int, list[int | None]]]:
    """Rounds and discarded blocks of every rank, whose clocks differ and of which one is hot."""
    ticks = count(0, 0.1 if ranks.rank == 0 else 10.0)
    session = short_session(folder, ranks)
    options = replace(session.options, precision=0.0, min_time_s=0.0, max_time_s=1.55)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    with mock.patch.object(rounds, "time", clock):
        group = measure_group(replace(session, options=options, watch=Watch(Warm(ranks))), 2, int)
    cells = [cell.discarded_blocks for cell in group.cells]
    return gathered((max(row.block for row in group.blocks) + 1, cells))


def findings_of(
    check: Callable[[Subject], Finding], folder: Path, ranks: Ranks, **subject: Any
) -> list[tuple[str, str]]:
    """Every rank's verdict at one padded batch size, and its first difference in words."""
    tiny = make_tiny_subject(folder, ranks=ranks, **subject)
    finding = over_ranks(check(replace(tiny, only_batch_sizes=(3,), max_new_tokens=4)))
    text = "" if finding.difference is None else finding.difference.text
    return gathered((finding.answer.value, text))


def audit_with_a_fault_on_rank_1(folder: Path, *, ranks: Ranks) -> list[tuple[str, str]]:
    """What every rank says of isolation, where rank 1 alone writes where it must not: to the last
    row of slot 0, which nobody reads."""
    real = backends.sdpa_decode

    def decode(kv: LayerKv, rows: Rows, qkv: AttentionInput) -> Tensor:
        if ranks.rank == 1:
            kv.values[rows.cache.room - 1] += 1
        return real(kv, rows, qkv)

    with mock.patch.dict(backends.DECODE_BACKENDS, {"sdpa": decode}):
        return findings_of(isolation.run, folder, ranks, spec_tokens=(3,))


def audit_where_rank_1_reads_other_tokens(
    folder: Path, *, ranks: Ranks
) -> dict[str, list[tuple[str, str]]]:
    """What every rank says where rank 1 alone reads back another token than was decoded."""
    real = iteration.commit

    def commit(rows: RowState) -> None:
        real(rows)
        if ranks.rank == 1 and rows.spec_tokens:
            rows.out[0, 0] = (rows.out[0, 0] + 1) % 64

    told = {}
    with mock.patch.object(iteration, "commit", commit):
        for check in (equality, limits):
            told[check.NAME] = findings_of(check.run, folder, ranks, spec_tokens=(3,))
        group = measure_group(short_session(folder, ranks), 2, int)
    told["run"] = gathered(("wrong" if group.failures else "holds", "".join(group.failures)))
    return told


def audit_w8a8(folder: Path, *, ranks: Ranks) -> list[tuple[str, str]]:
    """What every rank says of hidden states, with activations quantised by parts."""
    return findings_of(hidden.run, folder, ranks, quant=QuantMode.W8A8)


MIXTURE_SHAPES: dict[str, dict[str, Any]] = {
    "glm4_moe": {"num_hidden_layers": 1, "first_k_dense_replace": 0},
    "deepseek_v3": {"num_hidden_layers": 1, "first_k_dense_replace": 0},
    "glm4_moe_lite": {"num_hidden_layers": 1, "mlp_layer_types": ["sparse"]},
}
"""One layer with a mixture: MiMo has the dense ones."""


def make_folders(
    root: Path, kinds: tuple[str, ...], vocab_size: int = VOCABULARY
) -> dict[str, Path]:
    """A checkpoint of each kind; ``OWN`` is MiMo's with matrices of the head's own."""
    like_deepseek = ("glm4_moe", "deepseek_v3", "glm4_moe_lite")
    family = dict.fromkeys(like_deepseek, DEEPSEEK)
    form = HeadForm(own_embedding=True, own_output=True)
    return {
        kind: make_checkpoint(
            root / kind,
            "mimo" if kind == OWN else kind,
            family=family.get(kind, MIMO),
            form=form if kind == OWN else None,
            vocab_size=vocab_size,
            **MIXTURE_SHAPES.get(kind, {}),
        )
        for kind in kinds
    }


def tell_fp8_kv(folder: Path, *, ranks: Ranks) -> list[tuple[Ids, int, set[int]]]:
    """Every rank's tokens and acceptance over FP8 keys and values, plain and then with compiled
    layers on the first of several ranks. Also the bytes of its KV, and what its floor counts of a
    token in a layer."""
    model = load(folder, "divided", ranks, kv_dtype=KvDtype.FP8)
    rows = rows_of(model) if ranks.size == 1 else decoded_both_ways(model, ranks.is_first)
    num_bytes = make_speculator(model, max_batch_size=3, room=64).cache.num_bytes
    counted = {each.row_bytes(4) for each in rank_work(model).target.attentions}
    return gathered((rows, num_bytes, counted))


def tell_scaled(
    folders: dict[str, Path], quant: QuantMode = QuantMode.AUTO, *, ranks: Ranks
) -> list[dict[str, tuple[str, Ids]]]:
    """Every rank's fingerprint of FP8 checkpoints, and their tokens and drafts."""
    told = {}
    for name, folder in folders.items():
        model = load(folder, "divided", ranks, quant=quant)
        told[name] = fingerprint(model.target, model.head), rows_of(model)
    return gathered(told)


def tell_reduced(folders: dict[str, Path], file: Path, *, ranks: Ranks) -> list[dict[str, Any]]:
    """What every rank does with half of the vocabulary to draft, of checkpoints and of a preset."""
    told = {}
    how = {"draft_vocab": VOCABULARY // 2}
    with mock.patch.dict(PRESETS, {TIED.name: TIED}):
        for name, ref, more in (
            *((name, folder, {"draft_vocab_from": str(file)}) for name, folder in folders.items()),
            (TIED.name, Path(f"preset:{TIED.name}"), {}),
        ):
            model = load(ref, "divided", ranks, **how, **more)
            rules = (GREEDY, SAMPLED, TOP_P) if name == "mimo" else (GREEDY,)
            head = model.head
            assert head is not None and head.target_ids is not None and head.output is not None
            num_rows = len(head.output.weight)
            (product,) = rank_work(model).modules[0].output.products
            told[name] = tell(model, rules), head.target_ids.tolist(), num_rows, product
    return gathered(told)
