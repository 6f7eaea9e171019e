"""A small engine behind the calls of vLLM 0.26 that cgbench's driver uses. torch does its work.

Environment variables plant faults: ``SMALL_VLLM_FAULT`` is one of ``start``, ``exit``, ``memory``,
``step``, ``late`` (at the second batch size), ``hang``, ``graphs`` and ``import``.
``VLLM_USE_V2_MODEL_RUNNER=0`` takes runner V1.
"""

import os
import sys
import time
from types import SimpleNamespace

import torch

from vllm.graphs import Mode, runner_v1, runner_v2
from vllm.sampling_params import RequestOutputKind, SamplingParams

__version__ = "0.26.0"
FAULT = os.environ.get("SMALL_VLLM_FAULT", "")
FAULTY_STEP = 12
WIDTH = 64

if FAULT == "import":
    raise ImportError("libsmall.so.1: cannot open shared object file")


class OutOfMemoryError(RuntimeError):
    """What torch raises on a GPU that is full."""


class LLM:
    """The engine's entry. It refuses an argument that it does not know, as vLLM does."""

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool,
        seed: int,
        load_format: str = "auto",
        trust_remote_code: bool = False,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        speculative_config: dict | None = None,
        compilation_config: dict | None = None,
        enforce_eager: bool = False,
        async_scheduling: bool = True,
    ) -> None:
        print("INFO small vllm starts", model, "load_format", load_format, flush=True)
        assert skip_tokenizer_init and not enable_prefix_caching
        if FAULT == "start":
            raise ValueError("No valid attention backend found")
        if FAULT == "exit":
            print("terminate called after throwing an instance of 'c10::Error'", file=sys.stderr)
            sys.stderr.flush()
            os._exit(7)
        if FAULT == "memory":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        k = speculative_config["num_speculative_tokens"] if speculative_config else 0
        stated = compilation_config or {}
        self.llm_engine = Engine(
            k, seed, max_model_len, max_num_seqs, max_num_batched_tokens, stated, enforce_eager,
            async_scheduling,
        )  # fmt: skip
        print("INFO Graph capturing finished in 1 secs, took 0.02 GiB", flush=True)


class Engine:
    """Decodes every request by a product of matrices, with a draft kept now and then."""

    def __init__(
        self, k, seed, max_len, max_seqs, max_tokens, compilation, eager, async_scheduling
    ) -> None:
        self._k, self._max_len, self._max_tokens = k, max_len, max_tokens
        draw = torch.Generator().manual_seed(seed)
        self._weight = torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5
        self._requests: dict[str, dict] = {}
        self._ahead: list[list] = []
        self._async = async_scheduling
        self._steps = 0
        is_v2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "1") == "1"
        mode = Mode.NONE if eager else Mode.FULL_AND_PIECEWISE
        sizes = compilation.get("cudagraph_capture_sizes") or default_sizes(max_seqs * (k + 1))
        sizes = sorted(size for size in sizes if size <= max_tokens)
        self.vllm_config = SimpleNamespace(
            use_v2_model_runner=is_v2,
            compilation_config=SimpleNamespace(
                cudagraph_mode=mode,
                mode=SimpleNamespace(name="VLLM_COMPILE"),
                cudagraph_capture_sizes=sizes,
                max_cudagraph_capture_size=max(sizes, default=0),
            ),
            scheduler_config=SimpleNamespace(
                max_num_seqs=max_seqs,
                max_num_batched_tokens=max_tokens,
                async_scheduling=async_scheduling,
            ),
        )
        make = runner_v2 if is_v2 else runner_v1
        runner = make(sizes if mode is not Mode.NONE else [], k, max_seqs, FAULT == "graphs")
        worker = SimpleNamespace(worker=SimpleNamespace(model_runner=runner))
        executor = SimpleNamespace(driver_worker=worker)
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(model_executor=executor))

    def add_request(self, name: str, prompt: dict, params: SamplingParams) -> str:
        tokens = prompt["prompt_token_ids"]
        assert params.ignore_eos and not params.detokenize
        assert params.output_kind is RequestOutputKind.DELTA
        if len(tokens) + params.max_tokens > self._max_len:
            raise ValueError(f"{len(tokens)} + {params.max_tokens} is over max_model_len")
        self._requests[name] = {"prompt": tokens, "read": 0, "made": 0}
        return name

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self._requests.pop(name, None)

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def step(self) -> list:
        """With asynchronous scheduling, return what the step before has made."""
        self._steps += 1
        is_late = FAULT == "late" and len(self._requests) > 1
        if is_late or (FAULT == "step" and self._steps > FAULTY_STEP):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if FAULT == "hang" and self._steps > FAULTY_STEP:
            time.sleep(3600)
        self._ahead.append(self._schedule())
        made = self._ahead.pop(0) if len(self._ahead) > int(self._async) else []
        return [each for each in made if each.request_id in self._requests]

    def _schedule(self) -> list:
        budget, outputs = self._max_tokens, []
        for name, request in self._requests.items():
            left = len(request["prompt"]) - request["read"]
            if left:
                taken = min(left, budget)
                budget -= taken
                request["read"] += taken
                if taken < left or not taken:
                    continue
            outputs.append(self._decode(name, request, 1 if left else self._emitted(request)))
        return outputs

    def _emitted(self, request: dict) -> int:
        """A draft is kept in every other step, two in every fourth."""
        turn = request["made"] % 4
        return 1 + min(self._k, (0, 1, 0, 2)[turn])

    def _decode(self, name: str, request: dict, count: int):
        state = torch.full((1, WIDTH), float(sum(request["prompt"]) % 97) / 97)
        for _ in range(1 + self._k):
            state = torch.tanh(state @ self._weight)
        first = int(state.abs().sum() * 1000) % 1000
        tokens = [first + request["made"] + i for i in range(count)]
        request["made"] += count
        output = SimpleNamespace(token_ids=tokens)
        return SimpleNamespace(request_id=name, outputs=[output])


def default_sizes(decode_tokens: int) -> list[int]:
    """vLLM 0.26's own list: its rule in a few lines, apart from the one that cgbench has."""
    most = min(2 * decode_tokens, 512)
    found = [size for size in (1, 2, 4) if size <= most]
    size = 8
    while size <= most:
        found.append(size)
        size += 8 if size < 256 else 16
    return found
