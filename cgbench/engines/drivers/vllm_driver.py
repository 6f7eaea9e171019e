"""Drive vLLM in process, by ``LLM.llm_engine.step()``.

Checked against vLLM 0.26.0. ``VLLM_ENABLE_V1_MULTIPROCESSING=0`` must be set before vLLM is
imported, so that the engine's core runs here and the profiler sees its kernels.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from cgbench.engines.drivers.driver import SteppedDriver, peak_memory_bytes
from cgbench.engines.drivers.messages import (
    CapturedGraphs,
    JsonObject,
    Prefill,
    Prefilled,
    Start,
    Started,
)
from cgbench.words import Phase

MAX_PREFILL_STEPS = 2000

KV_SHARE = 0.04
"""The share of the device that vLLM checks to be free. Its KV cache is given in bytes."""

SCHEDULED_AHEAD = 2
"""The most steps that asynchronous scheduling has on their way."""

VERIFY, DRAFT_FIRST, DRAFT_REST = (
    each.value for each in (Phase.VERIFY, Phase.DRAFT_FIRST, Phase.DRAFT_REST)
)


class VllmDriver(SteppedDriver):
    """A ``VllmDriver`` is vLLM with the draft length of one k."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._ids: list[str] = []
        self._tokens: dict[str, list[int]] = {}
        self._batches = 0
        self._spec_tokens = 0

    @property
    def _engine(self) -> Any:
        return self._llm.llm_engine

    def start(self, asked: Start) -> Started:
        """Start vLLM, which compiles and captures. Raise ``ValueError`` for more than one k."""
        if len(asked.spec_tokens) != 1:
            raise ValueError("vLLM has one draft length a process")
        self._spec_tokens = asked.spec_tokens[0]
        begin = time.perf_counter()
        import vllm

        imported = time.perf_counter()
        self._llm = vllm.LLM(**engine_arguments(asked))
        started = time.perf_counter()
        config = self._engine.vllm_config
        runner = model_runner(self._engine)
        return Started(
            version=vllm.__version__,
            import_s=imported - begin,
            start_s=started - imported,
            memory_bytes=peak_memory_bytes(),
            facts=facts_of(config, runner),
            graphs=[vars(each) for each in captured_graphs(runner, self._spec_tokens)],
            options=options_of(config),
        )

    def prefill(self, asked: Prefill) -> Prefilled:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._end_batch()
        how = SamplingParams(
            temperature=0.0,
            ignore_eos=True,
            max_tokens=asked.new_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._batches += 1
        self._ids = [f"cgbench-{self._batches}-{i}" for i in range(len(asked.prompts))]
        self._tokens = {name: [] for name in self._ids}
        begin = time.perf_counter()
        for name, prompt in zip(self._ids, asked.prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, how)
        count = 0
        while not all(self._tokens.values()):
            self.step()
            count += 1
            if count > MAX_PREFILL_STEPS:
                raise RuntimeError(f"prefill did not end in {MAX_PREFILL_STEPS} steps")
        emitted = [len(tokens) for tokens in self._tokens.values()]
        return Prefilled(time.perf_counter() - begin, count, emitted)

    def step(self) -> list[int]:
        got: Counter[str] = Counter()
        for output in self._engine.step():
            # A request of the batch before may have had a step on its way.
            if output.request_id in self._tokens:
                new = output.outputs[0].token_ids
                self._tokens[output.request_id].extend(new)
                got[output.request_id] += len(new)
        return [got[name] for name in self._ids]

    def tokens(self) -> list[list[int]]:
        return [self._tokens[name] for name in self._ids]

    def stop(self) -> None:
        self._end_batch()

    def _end_batch(self) -> None:
        """End the requests of the batch, and let go by the steps that were scheduled already."""
        if not self._ids:
            return
        self._engine.abort_request(self._ids)
        for _ in range(SCHEDULED_AHEAD):
            self._engine.step()
        self._ids = []


def engine_arguments(asked: Start) -> JsonObject:
    """Return the arguments of ``vllm.LLM``. Those that the user gives replace those made here."""
    made: JsonObject = {
        "model": asked.model,
        "skip_tokenizer_init": True,
        "dtype": asked.dtype,
        "max_model_len": asked.max_model_len,
        "max_num_seqs": asked.max_num_seqs,
        "max_num_batched_tokens": asked.max_num_batched_tokens,
        "enable_prefix_caching": False,
        "seed": asked.seed,
    }
    if asked.is_dummy:
        made["load_format"] = "dummy"
    if asked.has_own_code:
        made["trust_remote_code"] = True
    if asked.kv_bytes is not None:
        made["kv_cache_memory_bytes"] = asked.kv_bytes
        made["gpu_memory_utilization"] = KV_SHARE
    if asked.spec_tokens[0]:
        made["speculative_config"] = {
            "method": "mtp",
            "num_speculative_tokens": asked.spec_tokens[0],
        }
    given = dict(asked.arguments)
    # A drafter of the user's own still drafts k tokens.
    if "speculative_config" in given and "speculative_config" in made:
        made["speculative_config"] |= given.pop("speculative_config")
    elif not asked.spec_tokens[0]:
        given.pop("speculative_config", None)
    return made | given


def model_runner(engine: Any) -> Any:
    """Return the object that runs the model, which holds the graphs. It is None if the engine's
    core runs elsewhere.
    """
    core = getattr(getattr(engine, "engine_core", None), "engine_core", None)
    worker = getattr(getattr(core, "model_executor", None), "driver_worker", None)
    return getattr(getattr(worker, "worker", worker), "model_runner", None)


def options_of(config: Any) -> JsonObject:
    """Return the settings that decide what is captured, as vLLM resolved them."""
    compilation, scheduler = config.compilation_config, config.scheduler_config
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "graph_mode": _word(compilation.cudagraph_mode),
        "graph_sizes": sorted(compilation.cudagraph_capture_sizes or []),
        "graph_maximum": compilation.max_cudagraph_capture_size,
    }


def facts_of(config: Any, runner: Any) -> dict[str, str]:
    """Return versions, modes and backends that vLLM chose, in words."""
    import torch

    compilation = config.compilation_config
    facts = {
        "torch": torch.__version__,
        "runner": "V2" if getattr(config, "use_v2_model_runner", False) else "V1",
        "async_scheduling": str(config.scheduler_config.async_scheduling),
        "graph_mode": _word(compilation.cudagraph_mode),
        "compile_mode": _word(compilation.mode),
    }
    if backends := sorted(set(_attention(runner))):
        facts["attention"] = ", ".join(backends)
    moe = getattr(getattr(config, "kernel_config", None), "moe_backend", None)
    if moe is not None:
        facts["moe_backend_asked"] = str(moe)
    return facts


def _word(mode: Any) -> str:
    return str(getattr(mode, "name", mode))


def _attention(runner: Any) -> Iterator[str]:
    for groups in getattr(runner, "attn_groups", None) or ():
        for group in groups:
            backend = group.backend
            yield backend.get_name() if hasattr(backend, "get_name") else backend.__name__


def captured_graphs(runner: Any, spec_tokens: int) -> list[CapturedGraphs]:
    """Return what vLLM captured, phase by phase, from the objects that dispatch to graphs.

    Runner V2 keeps graphs in a manager for the target and in two for the drafter. Runner V1 keeps
    the keys of the target in one dispatcher and the drafter's in another.
    """
    if getattr(runner, "cudagraph_manager", None) is not None:
        return list(_of_runner_v2(runner, spec_tokens))
    if getattr(runner, "cudagraph_dispatcher", None) is not None:
        return list(_of_runner_v1(runner, spec_tokens))
    return []


def _of_runner_v2(runner: Any, spec_tokens: int) -> Iterator[CapturedGraphs]:
    yield _of_manager(runner.cudagraph_manager, spec_tokens, VERIFY)
    drafter = getattr(runner, "speculator", None)
    if drafter is None or not spec_tokens:
        return
    yield _of_manager(getattr(drafter, "prefill_cudagraph_manager", None), spec_tokens, DRAFT_FIRST)
    if spec_tokens > 1:
        manager = getattr(drafter, "decode_cudagraph_manager", None)
        yield _of_manager(manager, spec_tokens, DRAFT_REST)


def _of_manager(manager: Any, spec_tokens: int, phase: str) -> CapturedGraphs:
    if manager is None:
        return CapturedGraphs(spec_tokens, phase)
    whole = list(manager.graphs)
    by_mode = getattr(manager, "_capture_descs", {})
    pieces = [
        desc.num_tokens
        for mode, descs in by_mode.items()
        if _word(mode) == "PIECEWISE"
        for desc in descs
    ]
    return _graphs(spec_tokens, phase, ((d.num_reqs, d.num_tokens) for d in whole), pieces)


def _of_runner_v1(runner: Any, spec_tokens: int) -> Iterator[CapturedGraphs]:
    yield _of_dispatcher(runner.cudagraph_dispatcher, spec_tokens, VERIFY)
    drafter = getattr(runner, "drafter", None)
    if not spec_tokens:
        return
    dispatcher = getattr(drafter, "cudagraph_dispatcher", None)
    yield _of_dispatcher(dispatcher, spec_tokens, DRAFT_FIRST)
    if spec_tokens > 1:
        yield _of_dispatcher(dispatcher, spec_tokens, DRAFT_REST)


def _of_dispatcher(dispatcher: Any, spec_tokens: int, phase: str) -> CapturedGraphs:
    keys = {_word(mode): held for mode, held in getattr(dispatcher, "cudagraph_keys", {}).items()}
    whole = ((key.num_reqs, key.num_tokens) for key in keys.get("FULL", ()))
    pieces = [key.num_tokens for key in keys.get("PIECEWISE", ())]
    return _graphs(spec_tokens, phase, whole, pieces)


def _graphs(
    spec_tokens: int, phase: str, whole: Iterable[tuple[int, int]], pieces: Iterable[int]
) -> CapturedGraphs:
    ordered = sorted(set(whole))
    return CapturedGraphs(
        spec_tokens,
        phase,
        requests=[requests for requests, _ in ordered],
        tokens=[tokens for _, tokens in ordered],
        piece_tokens=sorted(set(pieces)),
    )
