"""Write advice for people and programs: terminal, Markdown and JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from cgbench.advice.advise import Advice, ContextAdvice
from cgbench.advice.best_k import Best
from cgbench.advice.bounded import Bounded
from cgbench.advice.break_even import BreakEven
from cgbench.advice.surface import grid, surface_of
from cgbench.inputs import JsonObject
from cgbench.tables.part import Part, Row
from cgbench.tables.surface import surface_facts

NOTES = """\
Break-even is the mean acceptance length (1 + accepted drafts) at which k gives as many tokens a
second as k = 0. Per draft it is the rate at which each draft must be accepted, given the one before
it. Times are wall times of cgbench's own iteration, not of another engine. Intervals hold together.
"""


def terminal(advice: Advice, width: int) -> Iterator[Table | Text]:
    """Yield every table, then what is concluded."""
    for part in parts(advice):
        yield part.terminal(width)
    yield Text("\n".join(conclusions(advice)))


def markdown(advice: Advice) -> str:
    """Return the same as Markdown, with the options for each engine."""
    tables = [part.markdown() for part in parts(advice)]
    said = "\n".join(f"- {line}" for line in conclusions(advice))
    options = [
        f"#### {option.engine}, context {each.context_len}\n\n{option.note}\n\n"
        f"```\n{option.text}\n```"
        for each in advice.contexts
        for option in each.options
    ]
    return "\n\n".join([*tables, said, *options, NOTES])


def to_json(advice: Advice, *, with_surface: bool = False) -> str:
    """Return the advice as one JSON object. What is unknown is null."""
    fitted = surface_of(advice.times) if with_surface else None
    surface = {} if fitted is None else {"surface": surface_facts(fitted, grid(advice.times))}
    return json.dumps({**facts(advice), **surface}, indent=2)


def facts(advice: Advice) -> JsonObject:
    """Return the advice as plain values."""
    return {
        "scope": advice.times.scope.value,
        "acceptance": advice.lengths.source,
        "confidence": advice.question.confidence,
        "min_effect": advice.question.min_effect,
        "why_slow": list(advice.why_slow),
        "left_out": list(advice.times.left_out),
        "break_even": [_break_even_facts(each) for each in advice.break_evens],
        "contexts": [_context_facts(each) for each in advice.contexts],
    }


def parts(advice: Advice) -> Iterator[Part]:
    """Yield the tables: break-even always, the best k if a length is known."""
    if advice.break_evens:
        yield Part(
            f"Break-even acceptance, scope {advice.times.scope}",
            (
                "context [tok]",
                "batch [req]",
                "k",
                "break-even length",
                "its interval",
                "as acceptance rate",
                "length",
                "tok/s vs k=0",
                "interval",
                "verdict",
            ),
            tuple(map(_break_even_row, advice.break_evens)),
            ("verdict",),
        )
    bests = [best for each in advice.contexts for best in each.bests]
    if bests:
        yield Part(
            "Best k",
            (
                "context [tok]",
                "batch [req]",
                "best k",
                "not told from it",
                "tok/s vs k=0",
                "interval",
            ),
            tuple(map(_best_row, bests)),
        )
    gains = [(each, gain) for each in advice.contexts for gain in each.gains]
    if gains:
        yield Part(
            "Gain over a fixed k: of what is advised, or of the best fixed k if nothing is",
            ("context [tok]", "over k", "tok/s", "interval", "workload"),
            tuple(
                (str(each.context_len), str(gain.k), *_ratio(gain.speedup), each.work.words)
                for each, gain in gains
            ),
            ("workload",),
        )


def conclusions(advice: Advice) -> Iterator[str]:
    """Yield the conclusions in words."""
    yield f"acceptance: {advice.lengths.source}"
    yield from advice.times.left_out
    for each in advice.contexts:
        yield f"context {each.context_len}: {each.conclusion}"
        yield from _interpolated(each)
        yield from (
            f"context {each.context_len}: no option for {engine}: {reason}"
            for engine, reason in each.refusals.items()
        )
    yield from advice.why_slow


MOST_ERROR = 0.1
COARSE = ". That is coarse: measure more --batch-sizes between those"


def options_text(advice: Advice, engine: str) -> Iterator[str]:
    """Yield the option of one engine for each context that has one."""
    for each in advice.contexts:
        for option in each.options:
            if option.engine == engine:
                yield f"# context {each.context_len}: {option.note}\n{option.text}"


def _interpolated(each: ContextAdvice) -> Iterator[str]:
    for before, tier in zip(each.chosen, each.chosen[1:], strict=False):
        low, high = before.measured_to, tier.measured_from
        if high - low > 1:
            yield (
                f"context {each.context_len}: the switch from k = {before.k} to {tier.k} at "
                f"{tier.first} requests was not measured. {low} and {high} were. Between them the "
                f"smaller k is taken unless the other is surely faster. {(low + high) // 2} among "
                "--batch-sizes tells more"
            )
    if each.doubt.num_sizes:
        yield (
            f"context {each.context_len}: a batch size left out is predicted from its neighbours "
            f"within {each.doubt.error:.1%}, and the ratio of two k within "
            f"{each.doubt.ratio_error:.1%} (root mean square)"
            + (COARSE if each.doubt.error > MOST_ERROR else "")
        )


def _break_even_row(each: BreakEven) -> Row:
    length = each.length
    return (
        *map(str, each.at[:2]),
        str(each.at.spec_tokens),
        f"{length.value:.3f}",
        _interval(length),
        "" if each.rate is None else f"{each.rate:.2f}",
        "" if each.known is None else f"{each.known.value:.2f}",
        *_ratio(each.speedup),
        each.pays.value,
    )


def _best_row(best: Best) -> Row:
    tied = ", ".join(map(str, sorted(best.tied)))
    return (*map(str, best.group), str(best.k), tied, *_ratio(best.vs_none))


def _ratio(found: Bounded | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return f"{found.value:.3f}x", _interval(found)


def _interval(found: Bounded) -> str:
    return f"{found.low:.3f} to {found.high:.3f}" if found.is_known else "unknown"


def _break_even_facts(each: BreakEven) -> JsonObject:
    return {
        **each.at._asdict(),
        "length": _bounds(each.length),
        "rate": each.rate,
        "known_length": _bounds(each.known),
        "speedup_vs_no_spec": _bounds(each.speedup),
        "verdict": each.pays.value,
    }


def _context_facts(each: ContextAdvice) -> JsonObject:
    return {
        "context_len": each.context_len,
        "best": [
            {
                "batch_size": best.group.batch_size,
                "k": best.k,
                "not_told_from_it": sorted(best.tied),
                "speedup_vs_no_spec": _bounds(best.vs_none),
            }
            for best in each.bests
        ],
        "advised": [asdict(tier) for tier in each.chosen],
        "unsettled": list(each.unsettled),
        "gains": [{"over_k": g.k, "speedup": _bounds(g.speedup)} for g in each.gains],
        "workload": each.work.words,
        "interpolation_error": each.doubt.error if each.doubt.num_sizes else None,
        "interpolation_ratio_error": each.doubt.ratio_error if each.doubt.num_sizes else None,
        "conclusion": each.conclusion,
        "options": {option.engine: option.text for option in each.options},
    }


def _bounds(found: Bounded | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    is_known = found.is_known
    return {
        "value": found.value,
        "low": found.low if is_known else None,
        "high": found.high if is_known else None,
    }
