"""Start another engine's server on the shipped target, audit it, and stop it."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import cgbench
from cgbench.endpoint.edge_findings import EndpointResult
from cgbench.endpoint.endpoint_request import EndpointRequest
from cgbench.endpoint.http_server import Address, Server
from cgbench.errors import EndpointError
from cgbench.request.model_ref import DEFAULT_MODEL_DIR
from cgbench.tables.endpoint import edge_table, endpoint_summary

START_SECONDS = 240


def audit_foreign(engine: str, python: str, max_num_seqs: int, port: int, folder: Path) -> None:
    """Audit an engine's own server, and write what was found."""
    with tempfile.TemporaryDirectory() as place:
        model = plain_target(Path(place) / "target")
        words = launch_words(engine, python, model, max_num_seqs, port)
        with started(words, port, Path(place) / "server.log"):
            request = request_for(engine, model, max_num_seqs, port)
            result = cgbench.audit_endpoint(request)
        write_page(engine, words, result, folder, named={str(model): "target"})


def plain_target(folder: Path) -> Path:
    """The shipped model without its head, as a Qwen2 that every engine loads."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    tensors = load_file(DEFAULT_MODEL_DIR / "model.safetensors")
    kept = {
        name: tensor.to(torch.float32)
        for name, tensor in tensors.items()
        if "mtp_layers" not in name
    }
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((DEFAULT_MODEL_DIR / "config.json").read_text())
    for name in ("cgbench_head", "num_nextn_predict_layers"):
        config.pop(name, None)
    config |= {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "torch_dtype": "float32",
        "sliding_window": None,
        "max_window_layers": config["num_hidden_layers"],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_text((DEFAULT_MODEL_DIR / name).read_text())
    return folder


def launch_words(engine: str, python: str, model: Path, max_num_seqs: int, port: int) -> list[str]:
    """The line that starts the engine's server."""
    if engine == "transformers":
        return [
            *(python, "-m", "transformers.cli.transformers", "serve", str(model)),
            *("--continuous-batching", "--dtype", "float32", "--device", "cpu"),
            *("--port", str(port)),
        ]
    return [
        # The package of the CPU build has another name than its own command line looks up.
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "target", "--dtype", "float32", "--max-model-len", "1024"),
        *("--max-num-seqs", str(max_num_seqs), "--port", str(port)),
        *("--speculative-config", SPECULATION),
    ]


SPECULATION = '{"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}'
"""Drafts looked up in the text: the target has no head of its own here."""


def request_for(engine: str, model: Path, max_num_seqs: int, port: int) -> EndpointRequest:
    """The audit. transformers has no capture list on a CPU: every bucket is tried."""
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 32) if size <= max_num_seqs)
    plan = {"capture_sizes": sizes} if engine == "transformers" else {"engine": "vllm-0.31"}
    return EndpointRequest(
        endpoint=f"http://127.0.0.1:{port}",
        model=str(model) if engine == "transformers" else "target",
        max_num_seqs=max_num_seqs,
        spec_tokens=0 if engine == "transformers" else 3,
        num_prompts=8,
        max_new_tokens=48,
        max_seconds=400,
        exact=engine == "transformers",
        **plan,
    )


@contextmanager
def started(words: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """The server, once it answers; its own process is ended at the end."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=env)
        try:
            _wait(process, port, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    server = Server(Address.parse("--endpoint", f"http://127.0.0.1:{port}"))
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            server.get_text("/health")
            return
        except EndpointError:
            time.sleep(1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SystemExit(f"the server did not start:\n{tail}")


def write_page(
    engine: str,
    words: Sequence[str],
    result: EndpointResult,
    folder: Path,
    named: Mapping[str, str],
) -> None:
    """The audit's JSON, and a page with its table. ``named``: names in place of others."""

    def renamed(text: str) -> str:
        for old, new in named.items():
            text = text.replace(old, new)
        return text

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{engine}.json").write_text(renamed(result.to_json()) + "\n", encoding="utf-8")
    result = replace(result, model=renamed(result.model))
    console = Console(record=True, width=150, file=open(os.devnull, "w"))
    console.print(edge_table(result))
    console.print(endpoint_summary(result), soft_wrap=True)
    table = "\n".join(line.rstrip() for line in console.export_text().splitlines())
    line = renamed(" ".join([Path(words[0]).name, *words[1:]]))
    parts = [
        f"# {engine}'s own server, audited",
        f"`python scripts/trials/audit_servers.py foreign {engine} --output {folder}`",
        f"The server: `{line}`",
        "\n".join(f"- {note}" for note in result.notes),
        f"```\n{table}\n```",
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    (folder / f"{engine}.md").write_text(text, encoding="utf-8")
    print(table)
