"""Audit a server: send the same requests alone and together, at every edge of its plan."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cgbench.endpoint.acceptance_across import Acceptance, AcceptanceFound, without_any
from cgbench.endpoint.dialect import find_dialect
from cgbench.endpoint.edge_findings import EdgeFinding, EdgeVerdict, EndpointResult
from cgbench.endpoint.edge_probes import Budget, EdgeAuditor
from cgbench.endpoint.edges import Edge, edges_of
from cgbench.endpoint.endpoint_request import EndpointRequest, Planned, planned
from cgbench.endpoint.engine_counters import Reading, read_counters, sum_of
from cgbench.endpoint.http_server import Address, Server
from cgbench.endpoint.near_ties import Likeness, Outcome, ties_in, worst
from cgbench.endpoint.probes import prompts_of
from cgbench.endpoint.references import make_reference, num_reference_requests
from cgbench.endpoint.traffic import Flow
from cgbench.errors import BadInputError, CannotError
from cgbench.progress import Bar, Progress
from cgbench.workload.prompts import read_named

MAX_TEXT = 2_000
"""Characters of a text that prompts are cut from."""


def audit_server(request: EndpointRequest, progress: Progress) -> EndpointResult:
    """Audit the server behind ``request.endpoint``. A wrong answer raises nothing.

    Raise ``BadInputError`` for a bad request, and ``EndpointError`` if the server does not answer
    one request alone.
    """
    start = time.perf_counter()
    plan = planned(request)
    edges = _chosen(edges_of(plan.request, plan.schedule), request.edges)
    servers = _servers(request)
    prompts = prompts_of([*_texts(request.prompts)], request.num_prompts)
    budget = Budget(request.max_requests, start + request.max_seconds)
    needed = num_reference_requests(len(prompts), has_other=len(servers) > 1)
    if reason := budget.take(needed):
        raise CannotError(f"one request at a time: {reason}. Raise it, or lower --num-prompts")
    before = read_counters(servers[0])
    flows = [_flow(server, request, prompts[0]) for server in servers]
    notes = [*plan.notes, *_notes(flows[0], plan, before)]
    for note in notes:
        progress.say(note)
    with progress.bar("alone", needed) as bar:
        counted = _Counted(bar)
        reference = make_reference(
            flows[0],
            flows[1] if len(flows) > 1 else None,
            prompts,
            request.max_new_tokens,
            is_exact=request.exact,
            on_request=counted.advance,
        )
    budget.give_back(needed - counted.steps)
    auditor = EdgeAuditor(request, plan, flows[0], reference, budget, len(edges))
    findings = [_alone(auditor, counted.steps)]
    progress.log(f"alone: {findings[0].verdict}")
    by_edge: dict[int, EdgeFinding] = {}
    with progress.bar("edges", len(edges)) as bar:
        # What matters most comes first, because the budget may end before the plan does.
        for edge in sorted(edges, key=lambda each: (not each.is_steep, each.peak)):
            bar.at(f"edge {edge.batch_size}")
            by_edge[edge.batch_size] = auditor.edge(edge)
            progress.log(f"edge {edge.batch_size}: {by_edge[edge.batch_size].verdict}")
            bar.advance()
    findings += [found for _, found in sorted(by_edge.items())]
    return EndpointResult(
        request=request,
        model=flows[0].dialect.model,
        server=flows[0].dialect.words,
        plan=plan.words,
        noise=reference.noise,
        findings=tuple(findings),
        requests=budget.sent,
        seconds=time.perf_counter() - start,
        notes=tuple(notes),
    )


@dataclass
class _Counted:
    """A bar that counts its steps."""

    bar: Bar
    steps: int = 0

    def advance(self) -> None:
        self.steps += 1
        self.bar.advance()


def _texts(named: str | None) -> Iterator[str]:
    """Yield texts to cut prompts from. Of a conversation, that is what was said."""
    for prompt in read_named(named, None).prompts:
        said = prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt)
        yield said[:MAX_TEXT]


def _chosen(edges: tuple[Edge, ...], wanted: tuple[int, ...]) -> tuple[Edge, ...]:
    known = {edge.batch_size for edge in edges}
    if unknown := sorted({*wanted} - known):
        listed = ",".join(map(str, sorted(known)))
        raise BadInputError(f"--edges {unknown[0]}: is no edge of the plan. Choose of {listed}")
    return tuple(edge for edge in edges if not wanted or edge.batch_size in wanted)


def _servers(request: EndpointRequest) -> list[Server]:
    key = os.environ.get(request.api_key_env) or None
    named = [("--endpoint", request.endpoint), ("--against", request.against)]
    return [
        Server(Address.parse(flag, url), key, float(request.timeout))
        for flag, url in named
        if url is not None
    ]


def _flow(server: Server, request: EndpointRequest, prompt: str) -> Flow:
    model = request.model
    if model is None:
        names = server.models()
        if not names:
            raise BadInputError(f"{server.address.flag} {server.address.url}: serves no model")
        model = names[0]
    return Flow(server, find_dialect(server, model, prompt))


def _notes(flow: Flow, plan: Planned, before: Reading) -> Iterator[str]:
    """Yield what limits the audit. ``before`` was read when nothing was sent yet."""
    if not flow.dialect.has_logprobs:
        yield "the server gives no logprobs: a difference is unclear, unless --exact holds for it"
    if plan.request.spec_tokens and not read_counters(flow.server).counts_drafts:
        yield "/metrics counts no drafts: acceptance is not judged"
    if before.running:
        yield f"the server runs {before.running:g} other requests, which change its batches"


def _alone(auditor: EdgeAuditor, requests: int) -> EdgeFinding:
    """Return the finding about one request at a time."""
    reference = auditor.reference
    outcomes = reference.outcomes if "tokens" in auditor.request.judged else ()
    first = next(worst(outcomes), Outcome(Likeness.EQUAL))
    verdict, details = EdgeVerdict.HOLDS, "" if first.likeness is Likeness.EQUAL else first.text
    if first.likeness is Likeness.WRONG:
        verdict = EdgeVerdict.WRONG
    elif first.likeness is Likeness.UNJUDGED:
        verdict = EdgeVerdict.UNCLEAR
    drafted, found = sum_of(reference.drafted), None
    if drafted is not None and "acceptance" in auditor.request.judged:
        found = AcceptanceFound(
            Acceptance.SAME if drafted.num_drafts else Acceptance.UNKNOWN,
            alone=drafted.mean_accepted,
            num_drafts=round(drafted.num_drafts),
        )
        if without_any(drafted):
            verdict = EdgeVerdict.WRONG
            details = f"none of {round(drafted.num_drafts)} drafts was kept"
    near_ties, largest_gap = ties_in(outcomes)
    return EdgeFinding(
        edge="alone",
        peak=1,
        changes=("one request at a time",),
        verdict=verdict,
        attempts=1,
        wrong_attempts=int(verdict is EdgeVerdict.WRONG),
        requests=requests,
        near_ties=near_ties,
        largest_gap=largest_gap,
        most_at_once=1,
        gap_ms=None,
        acceptance=found,
        details=details,
        reason="a difference cannot be judged" if verdict is EdgeVerdict.UNCLEAR else "",
    )
