"""What two ranks and one process are both asked: every rank imports this module."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
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
from cgbench.engine.runner import EagerRunner
from cgbench.floor.telemetry import Reading, Watch
from cgbench.floor.work import rank_work
from cgbench.kernels.attention import AttentionInput, LayerKv
from cgbench.kernels.row_updates import RowState, argmax
from cgbench.measure import rounds
from cgbench.measure.group import measure_group
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
from tests.support.audited import make_tiny_subject
from tests.support.session import make_session
from tests.support.tiny import (
    SHAPE,
    decode_prompts,
    make_checkpoint,
    make_speculator,
    make_state,
    random_prompts,
)
from tests.support.tracing import traced_layers

PROMPTS = random_prompts(5)
"""Of five lengths, for a batch of three and then one of two: ragged, and re-packed."""
MAX_NEW_TOKENS = 9
RULES: tuple[tuple[int, AcceptanceRule], ...] = (
    (3, Greedy()),
    (3, Sampled(temperature=0.7)),
    (1, Sampled(top_p=0.9, drafts="greedy")),
)
HEADS = ("divided", "whole")
OWN = "own"
COMPILED = (("mimo", "whole"), ("glm4_moe", "divided"))
"""Both kinds of head, and every sum over the ranks: of products, and of experts."""
SHARED_PATHS = {"glm4_moe_lite": f"{OWN_PATH} and products"}
"""transformers' plan leaves this shared expert whole on every rank, and divides the experts. So one
sum over the ranks cannot be of both. A head that is whole needs none."""
TIED = Preset("tied", "a test", {**SHAPE, "model_type": "qwen3", "tie_word_embeddings": True})
WHOLE_VOCABULARY = Preset("odd", "a test", {**SHAPE, "model_type": "qwen3", "vocab_size": 65})


@dataclass(frozen=True)
class Told:
    """What a model did on some number of ranks."""

    fingerprint: str
    tokens: dict[str, list[list[int]]]
    accepted: dict[str, list[list[int]]]
    kv_heads: set[int]


def tell_all(
    folders: dict[str, Path], presets: tuple[Preset, ...], *, ranks: Ranks
) -> list[dict[str, Told]]:
    """Everything of every rank, in one start: each checkpoint and preset by name."""
    torch.set_num_threads(1)
    told = {
        f"{name} {head}": tell(load(folder, head, ranks), RULES if head == "divided" else RULES[:2])
        for name, folder in folders.items()
        for head in HEADS
    }
    with mock.patch.dict(PRESETS, {preset.name: preset for preset in presets}):
        for preset in presets:
            model = load(Path(f"preset:{preset.name}"), "divided", ranks)
            told[preset.name] = tell(model, RULES[:1])
    return gathered(told)


def tell_compiled(
    folders: dict[str, Path], models: tuple[tuple[str, str], ...] = COMPILED, *, ranks: Ranks
) -> list[dict[str, list[list[int]]]]:
    """Every rank's tokens of k = 3 through compiled layers, traced and run as traced."""
    torch.set_num_threads(1)
    told = {}
    with traced_layers():
        for name, head in models:
            torch._dynamo.reset()
            model = load(folders[name], head, ranks)
            compile_forwards(model.target, model.head)
            # Each rank's part of every expert goes through the operator, the shared one's too.
            shared = SHARED_PATHS.get(name, OWN_PATH)
            paths = None if name == "mimo" else (OWN_PATH, OWN_PATH, shared)
            assert mixture_paths(model.target, model.head) == paths
            out = decode(model, Greedy(), 3, PROMPTS[:3])
            told[f"{name} {head}"] = out.token_ids + out.accepted
    return gathered(told)


def load(ref: Path, head: str, ranks: Ranks, **how: Any) -> LoadedModel:
    where = torch.device("cpu"), torch.float32
    is_divided = head == "divided"
    loading = Loading(str(ref), None, True, *where, divided_head=is_divided, ranks=ranks, **how)
    return load_model(loading)


def tell(model: LoadedModel, rules: tuple[tuple[int, AcceptanceRule], ...]) -> Told:
    tokens, accepted = {}, {}
    for k, rule in rules:
        out = [decode(model, rule, k, PROMPTS[at : at + 3]) for at in (0, 3)]
        name = f"{rule} k={k}"
        tokens[name] = [ids for each in out for ids in each.token_ids]
        accepted[name] = [counts for each in out for counts in each.accepted]
    kv_heads = {keys[0] for keys, _ in model.kv_shapes.values()}
    return Told(fingerprint(model.target, model.head), tokens, accepted, kv_heads)


def decode(model: LoadedModel, rule: AcceptanceRule, k: int, prompts: list[list[int]]) -> Any:
    accept = shared_rule(rule, model.target)
    spec = make_speculator(model, max_batch_size=3, room=64, accept=accept)
    return decode_prompts(spec, EagerRunner(spec, make_state(spec, k, 3)), prompts, MAX_NEW_TOKENS)


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


def count_work(
    folders: dict[str, Path], *, ranks: Ranks
) -> dict[str, list[tuple[Counted, Counted]]]:
    """What the floor counts for a rank, beside what the rank holds."""
    loaded = {f"{n} {head}": load(f, head, ranks) for n, f in folders.items() for head in HEADS}
    return {name: gathered((counted(model), held(model))) for name, model in loaded.items()}


def count_heads(
    folders: dict[str, Path], *, ranks: Ranks
) -> dict[str, list[tuple[set[tuple[int, int]], int]]]:
    """Query heads and values read a token by the floor's account, and bytes of KV a token as this
    rank keeps them, of the target and a divided head."""
    found = {}
    for name, folder in folders.items():
        model = load(folder, "divided", ranks)
        work = rank_work(model)
        attentions = (*work.target.attentions, *work.modules[0].forward.attentions)
        shapes = {(each.query_heads, each.row_elements) for each in attentions}
        kept = sum(heads * size for shape in model.kv_shapes.values() for heads, size in shape)
        found[name] = gathered((shapes, kept))
    return found


def count_heads_and_work(folders: dict[str, Path], *, ranks: Ranks) -> tuple[Any, Any]:
    """Both, in one start."""
    return count_heads(folders, ranks=ranks), count_work(folders, ranks=ranks)


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


def measure_by_other_clocks(folder: Path, *, ranks: Ranks) -> list[tuple[int, list[int | None]]]:
    """Rounds and discarded blocks of every rank, whose clocks differ and of which one is hot."""
    torch.set_num_threads(1)
    ticks = count(0, 0.1 if ranks.rank == 0 else 10.0)
    session = make_session(folder, iterations=1, ranks=ranks)
    options = replace(session.options, precision=0.0, min_time_s=0.0, max_time_s=1.55)
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    with mock.patch.object(rounds, "time", clock):
        group = measure_group(replace(session, options=options, watch=Watch(Warm(ranks))), 2, int)
    cells = [cell.discarded_blocks for cell in group.cells]
    return gathered((max(row.block for row in group.blocks) + 1, cells))


def findings_of(
    check: Callable[[Subject], Finding], folder: Path, ranks: Ranks, **subject: Any
) -> list[tuple[str, str]]:
    """Every rank's verdict, and its first difference in words."""
    finding = over_ranks(check(make_tiny_subject(folder, ranks=ranks, **subject)))
    text = "" if finding.difference is None else finding.difference.text
    return gathered((finding.answer.value, text))


def audit_with_a_fault_on_rank_1(folder: Path, *, ranks: Ranks) -> list[tuple[str, str]]:
    """What every rank says of isolation, where rank 1 alone writes where it must not: to the last
    row of slot 0, which nobody reads."""
    torch.set_num_threads(1)
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
    torch.set_num_threads(1)
    real = iteration.commit

    def commit(rows: RowState) -> None:
        real(rows)
        if ranks.rank == 1 and rows.spec_tokens:
            rows.out[0, 0] = (rows.out[0, 0] + 1) % 64

    told = {}
    with mock.patch.object(iteration, "commit", commit):
        for check in (equality, limits, isolation):
            told[check.NAME] = findings_of(check.run, folder, ranks, spec_tokens=(3,))
        group = measure_group(make_session(folder, iterations=1, ranks=ranks), 2, int)
    told["run"] = gathered(("wrong" if group.failures else "holds", "".join(group.failures)))
    return told


def audit_w8a8(folder: Path, *, ranks: Ranks) -> list[tuple[str, str]]:
    """What every rank says of hidden states, with activations quantised by parts."""
    torch.set_num_threads(1)
    return findings_of(hidden.run, folder, ranks, quant=QuantMode.W8A8)


def make_folders(root: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
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
        )
        for kind in kinds
    }


def tell_fp8_kv(folder: Path, *, ranks: Ranks) -> list[tuple[list[list[int]], int, set[int]]]:
    """Every rank's tokens and acceptance over FP8 keys and values at k = 3, plain and through
    compiled layers, traced and run as traced. Also the bytes of its KV, and what its floor counts
    of a token in a layer."""
    torch.set_num_threads(1)
    with traced_layers():
        model = load(folder, "divided", ranks, kv_dtype=KvDtype.FP8)
        plain = decode(model, Greedy(), 3, PROMPTS[:3])
        torch._dynamo.reset()
        compile_forwards(model.target, model.head)
        traced = decode(model, Greedy(), 3, PROMPTS[:3])
    rows = [each.token_ids + each.accepted for each in (plain, traced)]
    assert rows[0] == rows[1]
    num_bytes = make_speculator(model, max_batch_size=3, room=64).cache.num_bytes
    counted = {each.row_bytes(4) for each in rank_work(model).target.attentions}
    return gathered((rows[0], num_bytes, counted))


def tell_scaled(
    folders: dict[str, Path], quant: QuantMode = QuantMode.AUTO, *, ranks: Ranks
) -> list[dict[str, tuple[str, list[list[int]]]]]:
    """Every rank's fingerprint of FP8 checkpoints, and their tokens and acceptance at k = 3: plain,
    and those of GLM and of W8A8 through compiled layers too, traced and run as traced."""
    torch.set_num_threads(1)
    told = {}
    with traced_layers():
        for name, folder in folders.items():
            model = load(folder, "divided", ranks, quant=quant)
            mark = fingerprint(model.target, model.head)
            plain = decode(model, Greedy(), 3, PROMPTS[:3])
            rows = plain.token_ids + plain.accepted
            if name == "glm4_moe" or quant is QuantMode.W8A8:
                torch._dynamo.reset()
                compile_forwards(model.target, model.head)
                traced = decode(model, Greedy(), 3, PROMPTS[:3])
                assert traced.token_ids + traced.accepted == rows
            told[name] = mark, rows
    return gathered(told)
