"""Write ``cgbench plan`` for people: the same sections on a terminal and in Markdown."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table
from rich.text import Text

from cgbench.planning.study import Outcome, Saving
from cgbench.tables.fit import fitted_table
from cgbench.tables.markdown import markdown_table
from cgbench.tables.plan_cells import (
    Section,
    cost,
    counted,
    number,
    percent,
    setting,
    span_of,
)
from cgbench.tables.plan_phases import by_length_section, by_phase_section, replay_section
from cgbench.tables.plan_rows import BucketRow, PolicyRow, bucket_rows, policy_row

DEFINITIONS = """\
A batch is padded up to the next bucket. Padding is (bucket - batch) / bucket, its mean over the \
workload. Eager: no graph. In all and any phase eager: batch sizes that lack a graph in some \
phase. Expected is the mean cost of one iteration over the workload."""


def terminal(
    outcomes: Sequence[Outcome], savings: Sequence[Saving], width: int
) -> Iterator[Table | Text]:
    """Yield all sections in order: tables, for ``width`` characters, and lines of text. The lines
    are not to be folded where they are piped.
    """
    for section in sections(outcomes, savings):
        if section.rows:
            yield _table(section, width)
        else:
            yield Text(section.title)
        yield from map(Text, section.notes)
        yield Text()
    yield Text(DEFINITIONS, style="dim")


def markdown(outcomes: Sequence[Outcome], savings: Sequence[Saving]) -> str:
    """Return all sections as Markdown tables."""
    return "\n\n".join([*map(_markdown, sections(outcomes, savings)), DEFINITIONS])


def sections(outcomes: Sequence[Outcome], savings: Sequence[Saving]) -> Iterator[Section]:
    """Yield, for each k, a plan's buckets or several plans side by side, and what ``optimal``
    saves.

    Sections by phase, by draft length and of a replay follow if the outcome has them.
    """
    for k, group in groupby(outcomes, key=lambda each: each.request.spec_tokens):
        same_k = list(group)
        if k and len(same_k) == 1 and same_k[0].phases:
            yield by_phase_section(same_k[0], same_k[0].phases)
        yield _buckets(same_k[0]) if len(same_k) == 1 else _side_by_side(same_k)
        yield from (by_length_section(each, each.deployment) for each in same_k if each.deployment)
        if replayed := [each for each in same_k if each.admission]:
            yield replay_section(replayed)
        if saved := [saving for saving in savings if saving.spec_tokens == k]:
            yield _saved(same_k, saved)


def _buckets(outcome: Outcome) -> Section:
    title = f"{outcome.request.policy}, {setting(outcome)}"
    if outcome.plan is None:
        return Section(title, (), (), (f"refused: {outcome.reason}",))
    if outcome.request.spec_tokens and outcome.phases:
        title = f"Buckets of verify, {title}"
    headings = ("bucket [req]", "tokens", "serves [req]", "worst padding", "mean padding", "share")
    rows = tuple(map(_bucket_texts, bucket_rows(outcome)))
    notes = (*outcome.notes, *_of_schedule(outcome), _totals(outcome))
    notes = (*notes, *_warned(outcome.plan.warnings))
    return Section(title, headings, rows, notes)


def _of_schedule(outcome: Outcome) -> Iterator[str]:
    if outcome.deployment:
        yield (
            f"this table is that of k = {outcome.request.spec_tokens} throughout, the graphs by "
            "draft length are below"
        )


def _bucket_texts(row: BucketRow) -> tuple[str, ...]:
    return (
        number(row.batch_size) or row.mode,
        number(row.num_tokens),
        span_of(row.serves_from, row.serves_to),
        percent(row.worst_padding_frac),
        percent(row.mean_padding_frac),
        percent(row.workload_share),
    )


def _totals(outcome: Outcome) -> str:
    row = policy_row(outcome)
    unit = outcome.unit_words if row.eager_batch_sizes else row.cost_unit
    eager = counted(row.eager_batch_sizes or 0, "batch size")
    return (
        f"{counted(row.graphs or 0, 'graph')}, mean padding {percent(row.mean_padding_frac)}, "
        f"{eager} eager, {percent(row.eager_share)} of the workload, "
        f"expected cost {cost(row.expected_cost)} {unit}"
    )


def _side_by_side(outcomes: Sequence[Outcome]) -> Section:
    unit = outcomes[0].unit
    headings = (
        "policy",
        "graphs",
        "largest [req]",
        "any phase eager",
        "verify eager share",
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
    rows = tuple(_policy_texts(policy_row(outcome)) for outcome in outcomes)
    return Section(setting(outcomes[0]), headings, rows, (*refused, *said, *notes))


def _about(policy: str, warning: str) -> str:
    """Return ``warning`` with the policy's name before it, once."""
    return warning if warning.startswith(policy) else f"{policy}: {warning}"


def _policy_texts(row: PolicyRow) -> tuple[str, ...]:
    if row.refusal:
        return (row.policy, "refused", *[""] * 6)
    return (
        row.policy,
        number(row.graphs),
        number(row.largest_batch_size),
        number(row.any_phase_eager),
        percent(row.eager_share),
        percent(row.mean_padding_frac),
        percent(row.worst_padding_frac),
        cost(row.expected_cost),
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
            percent(saving.time_frac),
            f"{saving.graphs:+d}",
            percent(saving.time_frac_at_same_graphs),
            str(saving.graphs_at_same_time),
        )
        for saving in savings
    )
    sizes = ", ".join(map(str, best.plan.batch_sizes)) or "none"
    graphs = counted(len(best.plan.buckets), "graph")
    title = f"What optimal saves, k = {best.request.spec_tokens}, {graphs}"
    return Section(title, headings, rows, (f"optimal buckets [req]: {sizes}",))


def _warned(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"warning: {note}" for note in notes)


def _table(section: Section, width: int) -> Table:
    headings, rows = section.headings, section.rows
    table = fitted_table(section.title, headings, rows, width, names=headings[:1])
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _markdown(section: Section) -> str:
    headings, rows = section.headings, section.rows
    table = markdown_table(headings, rows, left=headings[:1]) if rows else ""
    parts = [f"### {section.title}", table]
    notes = "\n".join(f"- {note}" for note in section.notes)
    return "\n\n".join(filter(None, [*parts, notes]))
