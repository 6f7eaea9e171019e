"""An OpenAI-compatible server over ``ServingEngine``: completions, models and metrics."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from tests.support.serving import Emitted, Served, ServingEngine

NAME = "served"
KNOWN = {
    *("model", "prompt", "max_tokens", "temperature", "stream", "stream_options"),
    *("logprobs", "return_token_ids", "return_tokens_as_token_ids", "ignore_eos"),
}


class CompletionsServer(ThreadingHTTPServer):
    """``fields``: what a request may hold, so that poorer servers can be played."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        engine: ServingEngine,
        tokenizer: Any,
        *,
        fields: set[str] | None = None,
        has_metrics: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine, self.tokenizer = engine, tokenizer
        self.fields = KNOWN if fields is None else fields
        self.has_metrics = has_metrics
        self.seen: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """The URL, while it serves."""
        self.engine.start()
        thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.shutdown()
            self.engine.stop()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": NAME, "object": "model"}]})
        elif self.path == "/metrics" and self.server.has_metrics:
            self._reply(200, metrics_text(self.server.engine), "text/plain")
        else:
            self._json(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if unknown := sorted({*body} - self.server.fields):
            self._json(400, {"error": {"message": f"unknown fields: {unknown}"}})
            return
        self.server.seen.append(body)
        prompt = body["prompt"]
        ids = self.server.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        request = self.server.engine.submit(ids, body["max_tokens"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in self._events(body, request):
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def _events(self, body: dict[str, Any], request: Served) -> Iterator[dict[str, Any]]:
        is_first = True
        while (emitted := request.out.get()) is not None:
            choice = self._choice(body, emitted)
            if is_first and body.get("return_token_ids"):
                choice["prompt_token_ids"] = request.prompt
            is_first = False
            yield {"object": "text_completion", "model": NAME, "choices": [choice]}
            if emitted.is_last:
                break
        if body.get("stream_options"):
            usage = {"prompt_tokens": len(request.prompt), "completion_tokens": len(request.ids)}
            yield {"object": "text_completion", "model": NAME, "choices": [], "usage": usage}

    def _choice(self, body: dict[str, Any], emitted: Emitted) -> dict[str, Any]:
        decode = self.server.tokenizer.decode
        choice: dict[str, Any] = {
            "index": 0,
            "text": "".join(decode([token]) for token in emitted.ids),
            "finish_reason": "length" if emitted.is_last else None,
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = emitted.ids
        if body.get("logprobs"):
            as_ids = bool(body.get("return_tokens_as_token_ids"))

            def name(token: int) -> str:
                return f"token_id:{token}" if as_ids else decode([token])

            tops = [each.log_softmax(-1) for each in emitted.logits]
            best = [top.topk(body["logprobs"]) for top in tops]
            choice["logprobs"] = {
                "tokens": [name(token) for token in emitted.ids],
                "token_logprobs": [
                    float(top[token]) for top, token in zip(tops, emitted.ids, strict=True)
                ],
                "top_logprobs": [
                    {name(int(token)): float(value) for value, token in zip(*each, strict=True)}
                    for each in best
                ],
            }
        return choice

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._reply(status, json.dumps(content), "application/json")

    def _reply(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def metrics_text(engine: ServingEngine) -> str:
    """vLLM's names, with its labels."""
    found, labels = engine.counters, f'engine="0",model_name="{NAME}"'
    lines = [
        f"vllm:num_requests_running{{{labels}}} {float(found.running)}",
        f"vllm:spec_decode_num_drafts_total{{{labels}}} {float(found.drafts)}",
        f"vllm:spec_decode_num_drafts_created{{{labels}}} 1.7e+09",
        f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {float(found.draft_tokens)}",
        f"vllm:spec_decode_num_accepted_tokens_total{{{labels}}} {float(found.accepted)}",
    ]
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    lines += [
        f'{name}{{{labels},position="{position}"}} {float(count)}'
        for position, count in enumerate(found.by_position[: max(engine.states)])
    ]
    return "# HELP of every name is left out\n" + "\n".join(lines) + "\n"
