"""``cgbench plan`` for people: the same sections on a terminal and in Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from cgbench.planning.flags import by_phase
from cgbench.planning.phase_optimum import phase_cost, phase_optimum
from cgbench.planning.phases import PhasePlan, ranges
from cgbench.planning.study import Outcome, Saving
from cgbench.tables.fit import fitted_table
from cgbench.tables.plan_rows import bucket_rows, phase_rows, summary_row, without_noise
from cgbench.words import Phase

DEFINITIONS = """\
A batch is padded up to the next bucket; padding is (bucket - batch) / bucket, its mean over the \
workload. Eager: no graph. Any phase eager: verify or a draft has none. Expected is the mean cost \
of one iteration over the workload."""


@dataclass(frozen=True)
class Section:
    """A titled table of texts, and what is to be said under it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def terminal(
    outcomes: Sequence[Outcome], savings: Sequence[Saving], width: int
) -> Iterator[Table | Text]:
    """All sections in order: tables, for ``width`` characters, and lines of text, which are not to
    be folded where piped."""
    for section in sections(outcomes, savings):
        if section.rows:
            yield _table(section, width)
        else:
            yield Text(section.title)
        yield from map(Text, section.notes)
        yield Text()
    yield Text(DEFINITIONS, style="dim")


def markdown(outcomes: Sequence[Outcome], savings: Sequence[Saving]) -> str:
    """All sections as Markdown tables."""
    return "\n\n".join([*map(_markdown, sections(outcomes, savings)), DEFINITIONS])


def sections(outcomes: Sequence[Outcome], savings: Sequence[Saving]) -> Iterator[Section]:
    """For each k a plan's buckets, or several plans side by side, and what ``optimal`` saves."""
    for k, group in groupby(outcomes, key=lambda each: each.request.spec_tokens):
        same_k = list(group)
        yield _buckets(same_k[0]) if len(same_k) == 1 else _side_by_side(same_k)
        if k and len(same_k) == 1 and same_k[0].phases:
            yield _by_phase(same_k[0], same_k[0].phases)
        if saved := [saving for saving in savings if saving.spec_tokens == k]:
            yield _saved(same_k, saved)


def _buckets(outcome: Outcome) -> Section:
    title = f"{outcome.request.policy}, {_setting(outcome)}"
    if outcome.plan is None:
        return Section(title, (), (), (f"refused: {outcome.reason}",))
    headings = ("bucket [req]", "tokens", "serves [req]", "worst padding", "mean padding", "share")
    rows = tuple(map(_bucket_row, bucket_rows(outcome)))
    notes = (*outcome.notes, _totals(outcome), *_warned(outcome.plan.warnings))
    return Section(title, headings, rows, notes)


def _by_phase(outcome: Outcome, found: PhasePlan) -> Section:
    """Which graphs each phase has, and in the last row what no phase may lack."""
    headings = (
        "phase",
        "tokens a request",
        "graphs",
        "eager [req]",
        "eager share",
        "mean padding",
    )
    eager = found.eager_batch_sizes
    share = sum(outcome.weights[size - 1] for size in eager)
    last = ("any phase", "", str(found.num_graphs), _ranges(eager), _percent(share), "")
    rows = (*map(_phase_row, phase_rows(outcome)), last)
    notes = [f"{_PHASE_NAMES[each.phase]}: {each.note}" for each in found.phases if each.note]
    if mixed := found.mixed_tokens:
        notes.append(
            f"batches that hold a prefill: {len(mixed)} graphs, {min(mixed)} to {max(mixed)} tokens"
        )
    title = f"Graphs by phase, {outcome.request.policy}, k = {outcome.request.spec_tokens}"
    return Section(title, headings, rows, (*notes, *_lists_by_phase(outcome)))


_PHASE_NAMES = {
    Phase.VERIFY: "verify",
    Phase.DRAFT_FIRST: "draft 1",
    Phase.DRAFT_REST: "drafts 2..k",
    Phase.ITERATION: "iteration",
}


def _phase_row(row: dict[str, Any]) -> tuple[str, ...]:
    eager = [size for first, last in row["eager"] for size in range(first, last + 1)]
    return (
        _PHASE_NAMES[Phase(row["phase"])],
        str(row["tokens_per_request"]),
        str(row["graphs"]),
        _ranges(eager),
        _percent(row["eager_share"]),
        _percent(row["mean_padding_frac"]),
    )


def _lists_by_phase(outcome: Outcome) -> Iterator[str]:
    """What ``optimal`` would choose for an engine with a list for each phase, as many graphs."""
    request, shared = outcome.request, outcome.phases
    if shared is None or not by_phase(request):
        return
    best = phase_optimum(request, shared.num_graphs)
    cost = phase_cost(request, shared)
    lists = "; ".join(
        f"{_PHASE_NAMES[each.phase]} {', '.join(map(str, each.batch_sizes)) or 'none'}"
        for each in best.phases
    )
    yield f"a list for each phase, as many graphs: {lists}; saves {_percent(1 - best.cost / cost)}"


_MAX_RANGES = 4


def _ranges(sizes: Sequence[int]) -> str:
    """Neighbouring sizes together: 17-20, 33. A long row of them is cut."""
    found = [*ranges(sizes)]
    text = ", ".join(_range(first, last) for first, last in found[:_MAX_RANGES])
    return text if len(found) <= _MAX_RANGES else f"{text}, .. {sizes[-1]} ({len(sizes)} in all)"


def _bucket_row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        _number(row["batch_size"]) or row["mode"],
        _number(row["num_tokens"]),
        _range(row["serves_from"], row["serves_to"]),
        _percent(row["worst_padding_frac"]),
        _percent(row["mean_padding_frac"]),
        _percent(row["workload_share"]),
    )


def _totals(outcome: Outcome) -> str:
    row = summary_row(outcome)
    return (
        f"{_number(row['graphs'])} graphs; mean padding {_percent(row['mean_padding_frac'])}; "
        f"{row['eager_batch_sizes']} batch sizes eager, {_percent(row['eager_share'])} of the "
        f"workload; expected {_cost(row['expected_cost'])} {row['cost_unit']}"
    )


def _side_by_side(outcomes: Sequence[Outcome]) -> Section:
    unit = outcomes[0].unit
    headings = (
        "policy",
        "graphs",
        "largest [req]",
        "eager sizes",
        "any phase eager",
        "eager share",
        "mean padding",
        "worst padding",
        f"expected [{unit}]",
    )
    notes = [
        f"warning: {_about(outcome.request.policy, warning)}"
        for outcome in outcomes
        for warning in (outcome.plan.warnings if outcome.plan else ())
    ]
    said = [f"{outcome.request.policy}: {note}" for outcome in outcomes for note in outcome.notes]
    refused = [
        f"refused: {outcome.request.policy}: {outcome.reason}"
        for outcome in outcomes
        if outcome.plan is None
    ]
    rows = tuple(_policy_row(summary_row(outcome)) for outcome in outcomes)
    return Section(_setting(outcomes[0]), headings, rows, (*refused, *said, *notes))


def _about(policy: str, warning: str) -> str:
    """``warning`` with the policy's name before it, once."""
    return warning if warning.startswith(policy) else f"{policy}: {warning}"


def _policy_row(row: dict[str, Any]) -> tuple[str, ...]:
    if row["refusal"]:
        return (row["policy"], "refused", *[""] * 7)
    return (
        row["policy"],
        _number(row["graphs"]),
        _number(row["largest_batch_size"]),
        _number(row["eager_batch_sizes"]),
        _number(row["any_phase_eager"]),
        _percent(row["eager_share"]),
        _percent(row["mean_padding_frac"]),
        _percent(row["worst_padding_frac"]),
        _cost(row["expected_cost"]),
    )


def _saved(outcomes: Sequence[Outcome], savings: Sequence[Saving]) -> Section:
    [best] = [each for each in outcomes if each.request.policy == "optimal"]
    assert best.plan
    headings = (
        "against",
        "expected time saved",
        "graphs saved",
        "time saved, as many graphs",
        "graphs needed, as fast",
    )
    rows = tuple(
        (
            saving.policy,
            _percent(saving.time_frac),
            f"{saving.graphs:+d}",
            _percent(saving.time_frac_at_same_graphs),
            str(saving.graphs_at_same_time),
        )
        for saving in savings
    )
    sizes = ", ".join(map(str, best.plan.batch_sizes)) or "none"
    title = f"What optimal saves, k = {best.request.spec_tokens}, {len(best.plan.buckets)} graphs"
    return Section(title, headings, rows, (f"optimal buckets [req]: {sizes}",))


def _setting(outcome: Outcome) -> str:
    request = outcome.request
    workload = request.concurrency.name if request.concurrency else "every batch size alike"
    return f"k = {request.spec_tokens}, max_num_seqs {request.max_batch_size}, {workload}"


def _warned(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"warning: {note}" for note in notes)


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _percent(share: float | None) -> str:
    # Plus 0.0, for a tiny loss is no "-0.0 %".
    return "" if share is None else f"{round(100 * without_noise(share), 1) + 0.0:.1f} %"


def _cost(value: float | None) -> str:
    return "" if value is None else f"{without_noise(value):.4g}"


def _range(first: int | None, last: int | None) -> str:
    return _number(first) if first == last else f"{first}-{last}"


def _table(section: Section, width: int) -> Table:
    headings, rows = section.headings, section.rows
    table = fitted_table(section.title, headings, rows, width, names=headings[:1])
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _markdown(section: Section) -> str:
    rule = ("---", *["---:"] * (len(section.headings) - 1))
    lines = [f"| {' | '.join(cells)} |" for cells in (section.headings, rule, *section.rows)]
    parts = [f"### {section.title}", "\n".join(lines) if section.rows else ""]
    notes = "\n".join(f"- {note}" for note in section.notes)
    return "\n\n".join(filter(None, [*parts, notes]))
