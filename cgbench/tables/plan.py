"""``cgbench plan`` for people: the same sections on a terminal and in Markdown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.table import Table
from rich.text import Text

from cgbench.planning.study import Outcome, Saving
from cgbench.tables.fit import fitted_table
from cgbench.tables.markdown import markdown_table
from cgbench.tables.plan_rows import BucketRow, PolicyRow, bucket_rows, policy_row, without_noise

DEFINITIONS = """\
A batch is padded up to the next bucket; padding is (bucket - batch) / bucket, its mean over the \
workload. Eager: no graph. Expected is the mean cost of one iteration over the workload."""


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
        if saved := [saving for saving in savings if saving.spec_tokens == k]:
            yield _saved(same_k, saved)


def _buckets(outcome: Outcome) -> Section:
    title = f"{outcome.request.policy}, {_setting(outcome)}"
    if outcome.plan is None:
        return Section(title, (), (), (f"refused: {outcome.reason}",))
    headings = ("bucket [req]", "tokens", "serves [req]", "worst padding", "mean padding", "share")
    rows = tuple(map(_bucket_texts, bucket_rows(outcome)))
    return Section(title, headings, rows, (_totals(outcome), *_warned(outcome.plan.warnings)))


def _bucket_texts(row: BucketRow) -> tuple[str, ...]:
    return (
        _number(row.batch_size) or row.mode,
        _number(row.num_tokens),
        _range(row.serves_from, row.serves_to),
        _percent(row.worst_padding_frac),
        _percent(row.mean_padding_frac),
        _percent(row.workload_share),
    )


def _totals(outcome: Outcome) -> str:
    row = policy_row(outcome)
    return (
        f"{_number(row.graphs)} graphs; mean padding {_percent(row.mean_padding_frac)}; "
        f"{row.eager_batch_sizes} batch sizes eager, {_percent(row.eager_share)} of the "
        f"workload; expected {_cost(row.expected_cost)} {row.cost_unit}"
    )


def _side_by_side(outcomes: Sequence[Outcome]) -> Section:
    unit = outcomes[0].unit
    headings = (
        "policy",
        "graphs",
        "largest [req]",
        "eager sizes",
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
    refused = [
        f"refused: {outcome.request.policy}: {outcome.reason}"
        for outcome in outcomes
        if outcome.plan is None
    ]
    rows = tuple(_policy_texts(policy_row(outcome)) for outcome in outcomes)
    return Section(_setting(outcomes[0]), headings, rows, (*refused, *notes))


def _about(policy: str, warning: str) -> str:
    """``warning`` with the policy's name before it, once."""
    return warning if warning.startswith(policy) else f"{policy}: {warning}"


def _policy_texts(row: PolicyRow) -> tuple[str, ...]:
    if row.refusal:
        return (row.policy, "refused", *[""] * 6)
    return (
        row.policy,
        _number(row.graphs),
        _number(row.largest_batch_size),
        _number(row.eager_batch_sizes),
        _percent(row.eager_share),
        _percent(row.mean_padding_frac),
        _percent(row.worst_padding_frac),
        _cost(row.expected_cost),
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
    headings, rows = section.headings, section.rows
    table = markdown_table(headings, rows, left=headings[:1]) if rows else ""
    parts = [f"### {section.title}", table]
    notes = "\n".join(f"- {note}" for note in section.notes)
    return "\n\n".join(filter(None, [*parts, notes]))
