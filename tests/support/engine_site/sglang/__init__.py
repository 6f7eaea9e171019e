"""A small engine behind the calls of SGLang's ``Engine`` that cgbench's driver uses."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import torch  # noqa: F401  # As the engine does, so that its first step is not its import.

__version__ = "0.5.23"


class Engine:
    """Streams a batch: a chunk for each request a step, two tokens in every other step at k > 0."""

    def __init__(self, **arguments) -> None:
        assert arguments["stream_interval"] == 1 and arguments["skip_tokenizer_init"]
        self.k = arguments.get("speculative_num_steps", 0)
        most = arguments["max_running_requests"]
        self.info = {
            "version": __version__,
            "cuda_graph_bs_decode": [size for size in (1, 2, 4, 8) if size <= most],
            "attention_backend": "small",
        }
        self.folder = None

    def get_server_info(self) -> dict:
        return self.info

    def generate(self, *, input_ids, sampling_params, stream) -> Iterator[dict]:
        assert stream and sampling_params["ignore_eos"]
        made = [[] for _ in input_ids]
        step = 0
        while len(made[0]) < sampling_params["max_new_tokens"]:
            step += 1
            for place, tokens in enumerate(made):
                count = 2 if self.k and step % 2 == 0 else 1
                tokens.extend(range(len(tokens), len(tokens) + count))
                yield {"index": place, "output_ids": tokens[: sampling_params["max_new_tokens"]]}

    def start_profile(self, *, output_dir, activities) -> None:
        assert activities == ["CPU", "GPU"]
        self.folder = Path(output_dir)

    def stop_profile(self) -> None:
        events = [
            {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 100.0 * i, "dur": 40.0}
            for i in range(16)
        ]
        with gzip.open(self.folder / "1-TP-0.trace.json.gz", "wt") as file:
            json.dump({"traceEvents": events}, file)

    def shutdown(self) -> None:
        print("small sglang ends", flush=True)
