"""Drive SGLang by its documented in-process ``Engine``: streaming generation of a batch.

Written against SGLang 0.5.23's interface and not run yet. The engine has no call for one step. A
step here is the wait until every request has brought more tokens, so wall times include the way
through its processes. Its profiler writes traces, which are summed here.
"""

import gzip
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgbench.engines.drivers.device_time import sum_events, trace_events
from cgbench.engines.drivers.driver import SteppedDriver
from cgbench.engines.drivers.messages import (
    CapturedGraphs,
    JsonObject,
    Prefill,
    Prefilled,
    Profiled,
    Start,
    Started,
)
from cgbench.words import Phase

TRACE_WAIT_S = 60.0

GRAPH_SIZES = ("cuda_graph_bs_decode", "cuda_graph_bs")
"""The names under which releases report the batch sizes of decode graphs."""

BACKENDS = ("attention_backend", "decode_attention_backend", "moe_runner_backend")


class SglangDriver(SteppedDriver):
    """A ``SglangDriver`` is SGLang with the draft length of one k."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._chunks: Iterator[JsonObject] | None = None
        self._tokens: list[list[int]] = []

    def start(self, asked: Start) -> Started:
        """Start SGLang's processes. Raise ``ValueError`` for more than one k."""
        if len(asked.spec_tokens) != 1:
            raise ValueError("SGLang has one draft length a process")
        begin = time.perf_counter()
        import sglang

        imported = time.perf_counter()
        self._engine = sglang.Engine(**engine_arguments(asked))
        started = time.perf_counter()
        info = self._engine.get_server_info()
        k = asked.spec_tokens[0]
        sizes = next((sorted(info[name]) for name in GRAPH_SIZES if info.get(name)), [])
        verify = CapturedGraphs(k, Phase.VERIFY.value, sizes, [size * (k + 1) for size in sizes])
        return Started(
            version=str(info.get("version", sglang.__version__)),
            import_s=imported - begin,
            start_s=started - imported,
            facts={name: str(info[name]) for name in BACKENDS if info.get(name)},
            graphs=[vars(verify)],
        )

    def prefill(self, asked: Prefill) -> Prefilled:
        self._end_batch()
        self._tokens = [[] for _ in asked.prompts]
        how = {"temperature": 0.0, "max_new_tokens": asked.new_tokens, "ignore_eos": True}
        begin = time.perf_counter()
        self._chunks = self._engine.generate(
            input_ids=asked.prompts, sampling_params=how, stream=True
        )
        emitted = self.step()
        return Prefilled(time.perf_counter() - begin, 1, emitted)

    def step(self) -> list[int]:
        """Wait until each request has brought more tokens, and return how many."""
        assert self._chunks is not None
        got = [0] * len(self._tokens)
        while not all(got):
            chunk = next(self._chunks, None)
            if chunk is None:
                raise RuntimeError("the batch ended before its last step")
            place = chunk.get("index", 0)
            made = chunk["output_ids"]
            got[place] += len(made) - len(self._tokens[place])
            self._tokens[place] = list(made)
        return got

    def synchronize(self) -> None:
        """Do nothing, because the device belongs to another process."""

    def profile(self, count: int, untimed: int) -> Profiled:
        """Profile ``count`` steps by the engine's own profiler, and sum its traces."""
        for _ in range(untimed):
            self.step()
        with tempfile.TemporaryDirectory() as folder:
            self._engine.start_profile(output_dir=folder, activities=["CPU", "GPU"])
            start = time.perf_counter()
            emitted = [self.step() for _ in range(count)]
            wall_s = time.perf_counter() - start
            self._engine.stop_profile()
            events = trace_events(_trace(Path(folder)))
        totals = [sum(counts) for counts in zip(*emitted, strict=True)]
        return sum_events(events, count, wall_s, totals)

    def tokens(self) -> list[list[int]]:
        return self._tokens

    def stop(self) -> None:
        self._engine.shutdown()

    def _end_batch(self) -> None:
        """Read the batch to its end, because the engine has no call that ends one."""
        if self._chunks is not None:
            for _ in self._chunks:
                pass
        self._chunks = None


def engine_arguments(asked: Start) -> JsonObject:
    """Return the arguments of ``sglang.Engine``. Those that the user gives replace them."""
    k = asked.spec_tokens[0]
    made: JsonObject = {
        "model_path": asked.model,
        "skip_tokenizer_init": True,
        "dtype": asked.dtype,
        "context_length": asked.max_model_len,
        "max_running_requests": asked.max_num_seqs,
        "chunked_prefill_size": asked.max_num_batched_tokens,
        "disable_radix_cache": True,
        "random_seed": asked.seed,
        "stream_interval": 1,
        "log_level": "info",
    }
    if asked.is_dummy:
        made["load_format"] = "dummy"
    if asked.has_own_code:
        made["trust_remote_code"] = True
    if k:
        made |= {
            "speculative_algorithm": "NEXTN",
            "speculative_num_steps": k,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": k + 1,
        }
    return made | asked.arguments


def _trace(folder: Path) -> JsonObject:
    """Return the trace in ``folder``, which the engine's process writes when it has stopped."""
    end = time.monotonic() + TRACE_WAIT_S
    while time.monotonic() < end:
        for file in sorted(folder.rglob("*.json.gz")):
            try:
                with gzip.open(file, "rt", encoding="utf-8") as text:
                    found: JsonObject = json.load(text)
                    return found
            except (EOFError, ValueError):
                break
        time.sleep(0.5)
    raise RuntimeError(f"no trace within {TRACE_WAIT_S:g} s of the profile's end")
