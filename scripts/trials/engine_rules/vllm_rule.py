"""vLLM's sizes by its own code: the list of its configuration, and runner V2's graphs."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import groupby, product
from types import SimpleNamespace
from typing import Any

from cgbench.errors import PlanError
from cgbench.planning import PlanRequest, plan
from cgbench.planning.draft_schedule import from_ranges
from cgbench.planning.phases import phases_of
from cgbench.planning.policies import vllm
from cgbench.words import Phase
from engine_rules.comparison import Answer
from engine_rules.functions import modules, taken

CONFIG = "vllm/config/vllm.py"
GRAPHS = "vllm/v1/worker/gpu/cudagraph_utils.py"
SCHEDULE = "vllm/v1/spec_decode/dynamic/utils.py"
MEMBERS = (CONFIG, GRAPHS, SCHEDULE)


@dataclass(frozen=True)
class VllmCase:
    """One configuration of vLLM."""

    max_num_seqs: int
    spec_tokens: int
    budget: int = 8192
    sizes: tuple[int, ...] = ()
    maximum: int | None = None
    interactivity: bool = False
    blackwell: bool = False
    schedule: tuple[tuple[int, int, int], ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        extras = len(self.sizes) + bool(self.maximum) + len(self.schedule) + self.interactivity
        return (extras + self.blackwell, self.max_num_seqs, self.spec_tokens)


def cases(count: int, seed: int = 0) -> Iterator[VllmCase]:
    """All small defaults, then configurations at random up to ``count``."""
    small = [VllmCase(most, k) for most in range(1, 129) for k in range(9)]
    yield from small[:count]
    rng = random.Random(seed)
    for _ in range(count - len(small)):
        most, k = rng.choice([rng.randint(1, 64), rng.randint(1, 1100)]), rng.randint(0, 15)
        yield _special(rng, VllmCase(most, k, rng.choice([8192, 2048, rng.randint(64, 600)])))


def _special(rng: random.Random, case: VllmCase) -> VllmCase:
    match rng.randrange(6):
        case 0:
            listed = tuple(rng.randint(1, 700) for _ in range(rng.randint(1, 30)))
            return replace(case, sizes=listed)
        case 1:
            return replace(case, maximum=rng.randint(1, 700))
        case 2:
            return replace(case, interactivity=True)
        case 3:
            return replace(case, blackwell=True)
        case 4 if case.spec_tokens:
            edge = rng.randint(1, case.max_num_seqs)
            first, second = (rng.randint(0, case.spec_tokens) for _ in range(2))
            tiers = ((1, edge, first), (edge + 1, edge + 9, second))
            return replace(case, schedule=tiers)
    return case


class _Mode(Enum):
    """The engine's modes, as its functions ask of them; full for decode, pieces for the rest."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_AND_PIECEWISE = 3

    def __bool__(self) -> bool:
        return self is not _Mode.NONE

    def decode_mode(self) -> "_Mode":
        return _Mode.FULL

    def mixed_mode(self) -> "_Mode":
        return _Mode.PIECEWISE

    def separate_routine(self) -> bool:
        return True


class _Schedule:
    """``speculative_config`` as far as sizes depend on it."""

    def __init__(self, ranges: tuple[tuple[int, int, int], ...]) -> None:
        self.num_speculative_tokens_per_batch_size = [*ranges] or None

    def uses_dynamic_speculative_decoding(self) -> bool:
        return self.num_speculative_tokens_per_batch_size is not None


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def engine_of(sources: Mapping[str, str]) -> Callable[[VllmCase], Answer]:
    """The release's own answers."""
    quiet = SimpleNamespace(warning=_nothing, info=_nothing, warning_once=_nothing)
    schedule: dict[str, Any] = {}
    taken(sources[SCHEDULE], "validate_and_normalize_dynamic_sd_schedule", schedule)
    lookup = taken(sources[SCHEDULE], "build_dynamic_sd_schedule_lookup", schedule)
    names = {"CUDAGraphMode": _Mode, "logger": quiet}
    set_sizes = taken(sources[CONFIG], "_set_cudagraph_sizes", names, "VllmConfig")
    graphs: dict[str, Any] = {
        "CUDAGraphMode": _Mode,
        "round_up": _round_up,
        "product": product,
        "groupby": groupby,
        "defaultdict": defaultdict,
        "dataclass": dataclass,
        "replace": replace,
        "build_dynamic_sd_schedule_lookup": lookup,
        # A dataclass looks its module up.
        "__name__": __name__,
    }
    taken(sources[GRAPHS], "BatchExecutionDescriptor", graphs)
    candidates = taken(sources[GRAPHS], "_init_candidates", graphs, "CudaGraphManager")

    def answer(case: VllmCase) -> Answer:
        family = SimpleNamespace(is_device_capability_family=lambda _: case.blackwell)
        stand_ins = {
            "vllm": {},
            "vllm.platforms": {"current_platform": family},
            "vllm.v1": {},
            "vllm.v1.spec_decode": {},
            "vllm.v1.spec_decode.dynamic": {},
            "vllm.v1.spec_decode.dynamic.utils": {"build_dynamic_sd_schedule_lookup": lookup},
        }
        config = _config(case)
        with modules(stand_ins):
            try:
                set_sizes(config)
            except ValueError:
                return Answer(refused=True)
        listed = tuple(config.compilation_config.cudagraph_capture_sizes)
        verify = _graphs(candidates, case, config, case.spec_tokens + 1)
        drafts = _graphs(candidates, case, config, 1) if case.spec_tokens > 1 else ()
        return Answer(listed, verify, drafts)

    return answer


def _nothing(*_: object, **__: object) -> None:
    """A logger's method."""


def _config(case: VllmCase) -> SimpleNamespace:
    compilation = SimpleNamespace(
        cudagraph_mode=_Mode.FULL_AND_PIECEWISE,
        cudagraph_capture_sizes=[*case.sizes] or None,
        max_cudagraph_capture_size=case.maximum,
        post_init_cudagraph_sizes=_nothing,
        pass_config=SimpleNamespace(enable_sp=False),
    )
    scheduler = SimpleNamespace(max_num_seqs=case.max_num_seqs, max_num_batched_tokens=case.budget)
    return SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=scheduler,
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        speculative_config=_Schedule(case.schedule) if case.spec_tokens else None,
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
        performance_mode="interactivity" if case.interactivity else "balanced",
        uniform_decode_query_len=case.spec_tokens + 1,
        num_speculative_tokens=case.spec_tokens,
    )


def _graphs(
    candidates: Callable[[Any], None], case: VllmCase, config: SimpleNamespace, query_len: int
) -> tuple[int, ...]:
    """Batch sizes with a whole graph, of every draft length where a schedule has several."""
    manager = SimpleNamespace(
        vllm_config=config,
        compilation_config=config.compilation_config,
        max_num_reqs=case.max_num_seqs,
        cudagraph_mode=_Mode.FULL_AND_PIECEWISE,
        decode_query_len=query_len,
        varlen_decode=False,
        use_breakable_cg=False,
        lora_capture_cases=[0],
        _maybe_ubatch_twin=_nothing,
        _capture_descs={},
        _candidates={},
    )
    candidates(manager)
    full = manager._capture_descs.get(_Mode.FULL, [])
    return tuple(sorted(desc.num_reqs * 1000 + desc.num_tokens // desc.num_reqs for desc in full))


def policy_answer(policy: str) -> Callable[[VllmCase], Answer]:
    """The policy's answers, in the same form: a batch size and its tokens a request."""

    def answer(case: VllmCase) -> Answer:
        request = PlanRequest(
            case.spec_tokens,
            case.max_num_seqs,
            policy,
            max_num_batched_tokens=case.budget,
            graph_sizes=case.sizes,
            graph_maximum=case.maximum,
            interactivity=case.interactivity,
            blackwell=case.blackwell,
        )
        try:
            return _with_tiers(request, case) if case.schedule else _of_one_length(request)
        except PlanError as error:
            if "no capture size that is a multiple" in str(error):
                return Answer(tuple(vllm.token_list(request)), (), _rest(request))
            return Answer(refused=True)

    return answer


def _of_one_length(request: PlanRequest) -> Answer:
    found = phases_of(request, plan(request))
    verify, rest = found.of(Phase.VERIFY), found.of(Phase.DRAFT_REST)
    assert verify
    return Answer(
        found.mixed_tokens,
        tuple(n * 1000 + request.query_len for n in verify.batch_sizes),
        tuple(n * 1000 + 1 for n in rest.batch_sizes) if rest else (),
    )


def _with_tiers(request: PlanRequest, case: VllmCase) -> Answer:
    ranges = [list(each) for each in case.schedule]
    schedule = from_ranges("schedule", ranges, case.max_num_seqs, case.spec_tokens)
    request = replace(request, schedule=schedule)
    listed = vllm.token_list(request)
    verify = [
        n * 1000 + k + 1
        for k in schedule.lengths
        for n in vllm.uniform_graphs(listed, k + 1, case.max_num_seqs)
    ]
    return Answer(tuple(listed), tuple(sorted(verify)), _rest(request))


def _rest(request: PlanRequest) -> tuple[int, ...]:
    if request.spec_tokens < 2:
        return ()
    sizes = vllm.uniform_graphs(vllm.token_list(request), 1, request.max_batch_size)
    return tuple(n * 1000 + 1 for n in sizes)
