"""SGLang's sizes by its own code: defaults by GPU memory, the list, and what a runner captures."""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from cgbench.errors import PlanError
from cgbench.planning import PlanRequest, plan
from cgbench.planning.engine_defaults import with_defaults
from cgbench.planning.gpus import Gpu
from cgbench.planning.phases import phases_of
from cgbench.words import Phase
from engine_rules.comparison import Answer
from engine_rules.functions import modules, taken

MEMORY = "sglang/srt/arg_groups/memory_hook.py"
LIST = "sglang/srt/arg_groups/cuda_graph_hook.py"
RUNNER = "sglang/srt/model_executor/runner/base_cuda_graph_runner.py"
COMMON = "sglang/srt/utils/common.py"
MEMBERS = (MEMORY, LIST, RUNNER, COMMON)

_MIB = 1024**2


@dataclass(frozen=True)
class SglangCase:
    """One configuration of SGLang. ``ranks`` share a request's attention where they gather."""

    memory_mib: int
    num_gpus: int
    running: int
    spec_tokens: int
    maximum: int | None = None
    sizes: tuple[int, ...] = ()
    pad: bool = True
    ranks: int = 1

    @property
    def size(self) -> tuple[int, ...]:
        extras = len(self.sizes) + bool(self.maximum) + (not self.pad) + self.ranks - 1
        return (extras, self.running, self.spec_tokens, self.num_gpus)


def cases(count: int, seed: int = 0) -> Iterator[SglangCase]:
    """Configurations at random."""
    rng = random.Random(seed)
    for _ in range(count):
        ranks = rng.choice([1, 1, 1, 2, 4])
        yield SglangCase(
            memory_mib=rng.choice([15_360, 24_564, 46_068, 81_559, 143_771, 183_359]),
            num_gpus=ranks * rng.choice([1, 1, 2, 4]),
            running=rng.choice([rng.randint(1, 40), rng.randint(1, 1200)]),
            spec_tokens=rng.randint(0, 8),
            maximum=rng.choice([None, rng.randint(1, 700)]),
            sizes=tuple(rng.randint(1, 300) for _ in range(rng.choice([0, 0, rng.randint(1, 12)]))),
            pad=rng.random() < 0.8,
            ranks=ranks,
        )


def engine_of(sources: Mapping[str, str]) -> Callable[[SglangCase], Answer]:
    """The release's own answers."""
    listing: dict[str, Any] = {"resolving_view": _itself}
    names = (
        "generate_prefill_cuda_graph_batch_sizes",
        "generate_decode_cuda_graph_batch_sizes",
        "generate_cpu_graph_batch_sizes",
    )
    generators = {name: taken(sources[LIST], name, listing) for name in names}
    state = SimpleNamespace(case=None, sizes=[])
    memory: dict[str, Any] = {
        "resolving_view": _itself,
        "declare_resolution": _declare,
        "copy": copy,
        "use_mla_backend": lambda _: False,
        "logger": None,
        "Backend": SimpleNamespace(BREAKABLE="b", DISABLED="d"),
        "Phase": SimpleNamespace(DECODE="decode", PREFILL="prefill"),
        "get_device_memory_capacity": lambda _: state.case.memory_mib,
    }
    settle = taken(sources[MEMORY], "handle_gpu_memory_settings", memory)
    common: dict[str, Any] = {
        "require_gathered_buffer": lambda: state.case.ranks > 1,
        "get_exec": lambda: _exec(state.sizes),
        "get_parallel": lambda: SimpleNamespace(attn_tp_size=state.case.ranks, attn_cp_size=1),
        "is_hip": lambda: False,
    }
    alignment = taken(sources[COMMON], "get_cuda_graph_batch_size_alignment", common)
    runner: dict[str, Any] = {
        "get_exec": lambda: _exec(state.sizes),
        "get_flags": lambda: SimpleNamespace(capture=SimpleNamespace(enable_torch_compile=False)),
        "DllmConfig": SimpleNamespace(from_server_args=lambda _: None),
        "ceil_align": lambda number, multiple: -(-number // multiple) * multiple,
        "get_cuda_graph_batch_size_alignment": alignment,
    }
    capture = taken(sources[RUNNER], "get_batch_sizes_to_capture", runner)
    stand_ins = {
        "sglang": {},
        "sglang.srt": {},
        "sglang.srt.arg_groups": {},
        "sglang.srt.arg_groups.cuda_graph_hook": generators,
        "sglang.srt.arg_groups.model_overrides": {},
        "sglang.srt.arg_groups.model_overrides.qwen3_vl": {
            "expand_multimodal_decode_graph_to_running_limit": _nothing
        },
    }

    def answer(case: SglangCase) -> Answer:
        args = _args(case)
        state.case = case
        with modules(stand_ins):
            settle(args)
        state.sizes = args.cuda_graph_config.decode.bs
        pool = SimpleNamespace(req_to_token_pool=SimpleNamespace(size=case.running))
        pool.server_args = None
        try:
            verify, _ = capture(pool, case.spec_tokens + 1)
            drafts = capture(pool)[0] if case.spec_tokens else []
        except AssertionError:
            return Answer(refused=True)
        return Answer((), tuple(verify), tuple(drafts))

    return answer


def _itself(args: Any) -> Any:
    return args


def _nothing(*_: object) -> None:
    """A hook that changes nothing for text models."""


def _declare(args: Any, _: str, **values: object) -> None:
    vars(args).update(values)


def _exec(sizes: list[int]) -> SimpleNamespace:
    decode = SimpleNamespace(bs=sizes)
    graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(decode=decode))
    return SimpleNamespace(graph=graph, overlap=SimpleNamespace(enable_two_batch_overlap=False))


def _args(case: SglangCase) -> SimpleNamespace:
    decode = SimpleNamespace(max_bs=case.maximum, bs=[*case.sizes] or None, backend="full")
    prefill = SimpleNamespace(max_bs=None, bs=None, backend="b")
    return SimpleNamespace(
        device="cuda",
        cuda_graph_config=SimpleNamespace(decode=decode, prefill=prefill),
        _cuda_graph_config_locked=set(),
        chunked_prefill_size=None,
        tp_size=case.num_gpus,
        pp_size=1,
        max_running_requests=case.running,
        max_total_tokens=None,
        model_path="model",
        mem_fraction_static=0.9,
        enable_symm_mem=False,
        disable_cuda_graph_padding=not case.pad,
        speculative_algorithm="EAGLE" if case.spec_tokens else None,
    )


def policy_answer(policy: str) -> Callable[[SglangCase], Answer]:
    """The policy's answers with the engine's defaults, in the same form."""

    def answer(case: SglangCase) -> Answer:
        request = PlanRequest(
            case.spec_tokens,
            case.running,
            policy,
            tp_size=case.ranks,
            pad=case.pad,
            graph_sizes=case.sizes,
            graph_maximum=case.maximum,
        )
        given = {"max_batch_size", "pad", *(["graph_maximum"] if case.maximum else [])}
        gpu = Gpu("case", case.memory_mib * _MIB)
        try:
            request = with_defaults(request, gpu, given, case.num_gpus).request
            found = phases_of(request, plan(request))
        except PlanError:
            return Answer(refused=True)
        verify, first = found.of(Phase.VERIFY), found.of(Phase.DRAFT_FIRST)
        assert verify
        if not verify.buckets or (first and not first.buckets):
            return Answer(refused=True)
        return Answer((), verify.batch_sizes, first.batch_sizes if first else ())

    return answer
