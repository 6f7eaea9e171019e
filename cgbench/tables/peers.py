"""Write the rows of a comparison of peers as Markdown and as plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isfinite

from cgbench.engines.peer_rows import FORWARDS, Result, SharedFacts
from cgbench.tables.markdown import markdown_table
from cgbench.words import Phase, Scope

WHAT: dict[str, str] = {
    Scope.ITERATION: "cgbench, one graph an iteration, k = {k}",
    "phase": "cgbench, three graphs an iteration, k = {k}",
    "eager": "cgbench, no graphs, k = {k}",
    "iteration-k0": "cgbench, one graph an iteration, no drafts",
    "phase-k0": "cgbench, one graph a phase, no drafts",
    "eager-k0": "cgbench, no graphs, no drafts",
    "dynamic": "transformers `generate`, dynamic cache",
    "static": "transformers `generate`, static cache, `reduce-overhead`",
    "mtp": "transformers `generate(use_mtp=True)`",
    "batch": "transformers `generate_batch`",
    Phase.VERIFY: "cgbench, verify graph (accept in it), without graphs, eager",
    "verify-static": "transformers forward, static cache",
    "verify-compiled": "transformers forward, static cache, `reduce-overhead`",
}

NOT_YET = "no round yet"

STATISTICS = (
    *("step_p50_ms", "step_half_width_ms", "tokens_per_step"),
    *("tokens_per_s", "tokens_per_s_half_width"),
)

SYNTHETIC = (
    "Acceptance is synthetic: tokens a second of rows with drafts say what such rates would bring. "
    "Milliseconds a step are measured."
)


def markdown(facts: SharedFacts, results: Sequence[Result]) -> str:
    """Return both tables, with what they share and the command above them."""
    ordered = sorted(results, key=lambda result: [*WHAT].index(result.name))
    decoding = [result for result in ordered if result.name not in FORWARDS]
    forwards = [result for result in ordered if result.name in FORWARDS]
    parts = [
        "# Decode beside transformers",
        f"```\n{facts.command}\n```",
        "\n".join(_shared(facts)),
    ]
    if decoding:
        parts.append(_decoding_table(decoding, facts))
    if forwards:
        parts.append(_forward_table(forwards, facts))
    return "\n\n".join(parts) + "\n"


def _shared(facts: SharedFacts) -> Iterator[str]:
    environment = facts.environment
    where = environment.get("gpu") or environment.get("cpu")
    yield (
        f"- {facts.model}, head {facts.head}, {facts.dtype}, batch "
        f"{facts.batch_size}, context {facts.context_len}, k = {facts.spec_tokens}"
    )
    yield f"- {where}, torch {environment['torch']}, transformers {environment['transformers']}"
    yield f"- cgbench: attention {facts.attention}, acceptance {facts.acceptance}"
    if not facts.acceptance.startswith(("greedy", "sampled")):
        yield f"- {SYNTHETIC}"


def _decoding_table(results: Sequence[Result], facts: SharedFacts) -> str:
    headings = ("what", "ms / step", "tokens / step", "tok/s", "iteration is", "rounds")
    best = next((r for r in results if r.name == Scope.ITERATION and r.rounds), None)
    rows = [_decoding_row(result, facts, best) for result in results]
    return markdown_table(headings, rows, left=headings[:1])


def _decoding_row(result: Result, facts: SharedFacts, best: Result | None) -> Sequence[str]:
    name = WHAT[result.name].format(k=facts.spec_tokens)
    if not result.rounds:
        return name, result.reason or NOT_YET, "", "", "", ""
    rate = result.tokens_per_s()
    return (
        name,
        _with_interval(result.step_ms(), 3),
        f"{result.tokens_per_step():.2f}",
        _with_interval(rate, 1),
        "" if best is None else f"{best.tokens_per_s()[0] / rate[0]:.2f}x",
        _rounds(result),
    )


def _rounds(result: Result) -> str:
    """Return the number of rounds. If several commands took them, add how many, because these did
    not take turns with each other.
    """
    calls = f" in {result.calls} calls" if result.calls > 1 else ""
    return f"{len(result.rounds)}{calls}" + (f", then {result.reason}" if result.reason else "")


def _forward_table(results: Sequence[Result], facts: SharedFacts) -> str:
    headings = (
        f"forward of {facts.spec_tokens + 1} tokens a request",
        "ms",
        "cgbench is",
        "rounds",
    )
    best = next((r for r in results if r.name == Phase.VERIFY and r.rounds), None)
    rows = [_forward_row(result, best) for result in results]
    return markdown_table(headings, rows, left=headings[:1])


def _forward_row(result: Result, best: Result | None) -> Sequence[str]:
    name = WHAT[result.name]
    if not result.rounds:
        return name, result.reason or NOT_YET, "", ""
    step = result.step_ms()
    ratio = "" if best is None else f"{step[0] / best.step_ms()[0]:.2f}x"
    return name, _with_interval(step, 3), ratio, _rounds(result)


def _with_interval(value: tuple[float, float], digits: int) -> str:
    median, half = value
    return f"{median:.{digits}f} ± {half:.{digits}f}"


def row_facts(result: Result) -> dict[str, object]:
    """Return a row as plain values: its rounds, their medians, and half the widths of their
    intervals.

    None stands for a median without rounds, and for an interval of a single round.
    """
    facts = asdict(result)
    if not result.rounds:
        return {**facts, **dict.fromkeys(STATISTICS)}
    numbers = (*result.step_ms(), result.tokens_per_step(), *result.tokens_per_s())
    finite = [number if isfinite(number) else None for number in numbers]
    return {**facts, **dict(zip(STATISTICS, finite, strict=True))}
