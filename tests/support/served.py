"""The shipped model behind a server of the tests' own, and audits of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import torch
from transformers import AutoTokenizer

import cgbench
from cgbench.endpoint import served_audit
from cgbench.endpoint.answers import Ask
from cgbench.endpoint.dialect import Dialect, find_dialect
from cgbench.endpoint.edge_findings import EdgeFinding, EndpointResult
from cgbench.endpoint.endpoint_request import EndpointRequest
from cgbench.endpoint.http_server import Server
from cgbench.endpoint.references import Reference, make_reference
from cgbench.endpoint.traffic import Flow, Sent
from cgbench.models.loader import LoadedModel
from cgbench.request.model_ref import DEFAULT_MODEL_DIR
from tests.support.completions_server import CompletionsServer
from tests.support.serving import Served, ServingEngine
from tests.support.tiny import load_tiny

MAX_NUM_SEQS = 6
BUCKETS = (1, 2, 4)
K = 3
SMALL: dict[str, Any] = {"num_prompts": 4, "max_new_tokens": 28, "repeats": 1}


@cache
def shipped() -> tuple[LoadedModel, Any]:
    """The model and its tokenizer, loaded once."""
    model = load_tiny(DEFAULT_MODEL_DIR, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(DEFAULT_MODEL_DIR)


@contextmanager
def serving(
    kind: type[ServingEngine] = ServingEngine,
    *,
    buckets: Sequence[int] = BUCKETS,
    tiers: Sequence[tuple[int, int]] = ((MAX_NUM_SEQS, K),),
    **server: Any,
) -> Iterator[CompletionsServer]:
    """A server over the shipped model, while it serves."""
    model, tokenizer = shipped()
    engine = kind(model, max_num_seqs=tiers[-1][0], buckets=buckets, tiers=tiers)
    found = CompletionsServer(engine, tokenizer, **server)
    with found.running():
        yield found


KEPT: dict[object, tuple[Reference, int]] = {}
"""What servers answered one request at a time, and how many requests that took."""

KNOWN: dict[object, dict[tuple[int, ...], Served]] = {}
"""The requests behind it, for references that judge the same answers otherwise."""


def keep_reference(server: CompletionsServer) -> Callable[..., Reference]:
    """``make_reference``, which asks servers that answer alike alone, alike and once.

    A request alone is decoded as in every audit before, and takes most of an audit's time.
    """
    engine = server.engine
    server_key = engine.alone, *engine.buckets, *engine.tiers, *sorted(server.fields)

    def kept(flow: Flow, other: Flow | None, *asked: Any, on_request: Any, **how: Any) -> Reference:
        assert other is None
        key = server_key, server.has_metrics, asked, *how.items()
        if key in KEPT:
            reference, steps = KEPT[key]
            for _ in range(steps):
                on_request()
            return reference
        steps = 0

        def counted() -> None:
            nonlocal steps
            steps += 1
            on_request()

        # Each prompt is sent twice. That a server answers alike is what audits of clean ones try.
        engine.known = KNOWN.setdefault((server_key, asked), {})
        reference = make_reference(flow, None, *asked, on_request=counted, **how)
        engine.known = None
        KEPT[key] = reference, steps
        return reference

    return kept


DIALECTS: dict[object, Dialect] = {}
"""What servers accept, by the fields that they know."""


@contextmanager
def keeping_dialect(server: CompletionsServer) -> Iterator[None]:
    """Audits meanwhile ask servers that know the same fields once which those are: it takes nine
    requests."""

    def kept(asked: Server, model: str, prompt: str) -> Dialect:
        key = model, *sorted(server.fields)
        if key not in DIALECTS:
            DIALECTS[key] = find_dialect(asked, model, prompt)
        return DIALECTS[key]

    with mock.patch.object(served_audit, "find_dialect", kept):
        yield


@contextmanager
def keeping(server: CompletionsServer) -> Iterator[None]:
    """Audits meanwhile take what was asked one request at a time before."""
    with (
        keeping_dialect(server),
        mock.patch.object(served_audit, "make_reference", keep_reference(server)),
    ):
        yield


def audit_again(server: CompletionsServer, **fields: Any) -> EndpointResult:
    """``audit_of``, with what was asked one request at a time before."""
    with keeping(server):
        return audit_of(server, **fields)


@contextmanager
def gathering(server: CompletionsServer) -> Iterator[None]:
    """Requests of a probe begin in one order meanwhile, however busy the machine is.

    What decodes together decides whether a fault shows.
    """
    send_together = Flow.together

    def gathered(flow: Flow, asks: Sequence[Ask], delays_s: Sequence[float]) -> list[Sent]:
        server.engine.expected = len(asks)
        return send_together(flow, asks, delays_s)

    with mock.patch.object(Flow, "together", gathered):
        yield


def audit_of(server: CompletionsServer, *, in_order: bool = True, **fields: Any) -> EndpointResult:
    """An audit by the plan that the server has, unless ``fields`` say otherwise.

    Without ``in_order`` threads decide which requests decode together, as behind a real server.
    """
    plan: dict[str, Any] = {
        "engine": "explicit",
        "capture_sizes": tuple(server.engine.buckets),
        "max_num_seqs": server.engine.max_num_seqs,
        "spec_tokens": server.engine.k,
    }
    if "launch_line" in fields:
        plan = {}
    with gathering(server) if in_order else nullcontext():
        return cgbench.audit_endpoint(
            EndpointRequest(endpoint=server.url, **(SMALL | plan | fields))
        )


def edge_of(result: EndpointResult, edge: str) -> EdgeFinding:
    return next(finding for finding in result.findings if finding.edge == edge)
