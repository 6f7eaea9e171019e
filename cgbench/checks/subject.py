"""The subject of an audit is a model ready to decode, and the requests it is tried with."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from cgbench.checks.noise import MOVE_OF_CODES
from cgbench.checks.reference import EXACT, Plain, Rounding
from cgbench.engine.acceptance import Greedy, shared_rule
from cgbench.engine.deployment import Deployment
from cgbench.engine.graphs import GraphSet
from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import CellKey, EagerRunner, Runner
from cgbench.engine.state import DecodeState
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.planning import CapturePlan
from cgbench.words import Quant, Scope

# Every batch size up to here is tried. Above it, a sample is.
ALL_SIZES_TO = 64
EXTRA_SIZES = 8

MAX_PROMPTS = 16
# Longer contexts are tried by ``limits``. Here they would only cost prefills.
MAX_PROMPT_TOKENS = 256


@dataclass(frozen=True)
class Subject:
    """A ``Subject`` is what the checks work on. It always has the ``Greedy`` rule, which alone has
    one right answer.

    ``states`` and ``plans`` are by k, ``runners`` and ``graph_sets`` by (k, scope). There is an
    eager runner for every k. ``prompts`` are distinct and ragged. ``max_new_tokens`` counts the
    prefill's token too. ``is_exact`` means float32, where nothing may differ. It is false if keys
    and values or activations (``is_w8a8``) are rounded to FP8, because sums that differ in their
    last bit may round to other numbers.
    ``only_batch_sizes`` are the batch sizes to try, for a short form. It is empty for all of them.
    ``ranks`` share the model.
    """

    spec: Speculator
    states: Mapping[int, DecodeState]
    runners: dict[CellKey, Runner]
    graph_sets: dict[CellKey, GraphSet]
    plans: Mapping[int, CapturePlan]
    prompts: tuple[tuple[int, ...], ...]
    max_new_tokens: int
    seed: int
    is_exact: bool
    is_w8a8: bool = False
    only_batch_sizes: tuple[int, ...] = ()
    ranks: Ranks = ALONE

    @cached_property
    def plain(self) -> Plain:
        """Return plain greedy decoding of the same weights, computed once for all checks."""
        return Plain(self.spec.target, self.prompts, self.rounding, is_w8a8=self.is_w8a8)

    @property
    def least_move(self) -> float:
        """Return how far embeddings move at least where the noise of rounding is measured."""
        return MOVE_OF_CODES if self.is_w8a8 else 0.0

    @cached_property
    def rounding(self) -> Rounding:
        """Return the rounding of the keys and values that every attention reads."""
        kv_format = self.spec.cache.kv_format
        return Rounding(kv_format) if kv_format.is_fp8 else EXACT

    @property
    def is_batch_invariant(self) -> bool:
        """Return whether a row's bits depend on no other row.

        A grouped product of experts has each expert's tokens in one matrix. The whole batch decides
        the size of that matrix, and so its rounding.
        """
        return bool(self.spec.target.config._experts_implementation != "grouped_mm")

    def bucket_of(self, k: int, batch_size: int) -> int:
        """Return the rows that ``batch_size`` requests take: their bucket's, or their own without
        one.
        """
        bucket = self.plans[k].bucket_for(batch_size)
        return batch_size if bucket is None else bucket.batch_size

    @property
    def has_padding(self) -> bool:
        """Return whether any batch size tried takes more rows than it has requests."""
        sizes = ((k, size) for k in self.states for size in self.batch_sizes(k))
        return any(self.bucket_of(k, size) > size for k, size in sizes)

    @property
    def has_neighbours(self) -> bool:
        """Return whether two requests that are not the same can decode together."""
        return len(self.prompts) > 1 and any(self.largest(k) > 1 for k in self.states)

    def largest(self, k: int) -> int:
        """Return the largest batch size tried."""
        return max(self.batch_sizes(k))

    def batch_sizes(self, k: int) -> tuple[int, ...]:
        """Return the batch sizes to try, ascending.

        They are all sizes up to the largest bucket or 64. Above 64 they are every bucket, the size
        just below it, and a few seeded others.
        """
        if self.only_batch_sizes:
            return tuple(sorted(self.only_batch_sizes))
        plan = self.plans[k]
        largest = plan.eager_above or plan.max_batch_size
        sizes = set(range(1, min(largest, ALL_SIZES_TO) + 1))
        if largest > ALL_SIZES_TO:
            above = range(ALL_SIZES_TO + 1, largest + 1)
            sizes |= {size for b in plan.batch_sizes for size in (b - 1, b) if size in above}
            sizes |= set(random.Random(self.seed).sample(above, min(EXTRA_SIZES, len(above))))
        return tuple(sorted(sizes))

    def edge_sizes(self, k: int) -> tuple[int, ...]:
        """Return the least and the most padded of each bucket's ``batch_sizes``."""
        by_bucket: dict[int, list[int]] = {}
        for size in self.batch_sizes(k):
            by_bucket.setdefault(self.bucket_of(k, size), []).append(size)
        edges = {size for sizes in by_bucket.values() for size in (sizes[0], sizes[-1])}
        # A bucket that is full has no padding, so one size below it is tried as the least padded.
        edges |= {sizes[-2] for sizes in by_bucket.values() if len(sizes) > 2}
        return tuple(sorted(edges))


def make_subject(
    deployment: Deployment, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, seed: int
) -> Subject:
    """Return the deployment as the audit looks at it. ``seed`` chooses among ``prompts``, and cuts
    them ragged.

    Runners and graphs of another acceptance rule are left out, because their answer is not
    greedy's.
    """
    is_greedy = isinstance(deployment.spec.accept, Greedy)
    greedy = shared_rule(Greedy(), deployment.spec.target)
    spec = deployment.spec if is_greedy else replace(deployment.spec, accept=greedy)
    eager: dict[CellKey, Runner] = {
        (k, Scope.EAGER): EagerRunner(spec, state) for k, state in deployment.states.items()
    }
    return Subject(
        spec=spec,
        states=deployment.states,
        runners=eager | (dict(deployment.runners) if is_greedy else {}),
        graph_sets=dict(deployment.graph_sets) if is_greedy else {},
        plans=deployment.plans,
        prompts=choose_prompts(prompts, seed),
        max_new_tokens=max_new_tokens,
        seed=seed,
        ranks=deployment.model.ranks,
        is_exact=spec.target.dtype == torch.float32 and not deployment.model.rounds_to_fp8,
        is_w8a8=deployment.model.quant is Quant.W8A8,
    )


def choose_prompts(prompts: Sequence[tuple[int, ...]], seed: int) -> tuple[tuple[int, ...], ...]:
    """Return up to 16 of ``prompts``, distinct, cut to their first 256 tokens. If all are of one
    length, they are cut to seeded lengths.
    """
    draw = random.Random(seed)
    distinct = list(dict.fromkeys(prompt[:MAX_PROMPT_TOKENS] for prompt in prompts))
    chosen = draw.sample(distinct, min(MAX_PROMPTS, len(distinct)))
    if len({len(prompt) for prompt in chosen}) == 1:
        chosen = [p[: draw.randint((len(p) + 1) // 2, len(p))] for p in chosen]
    return tuple(dict.fromkeys(chosen))
