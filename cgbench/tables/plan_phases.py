"""Show ``cgbench plan`` by phase, by draft length, and over a request trace."""

from collections.abc import Iterator, Sequence

from cgbench.planning.admission import Absorbing
from cgbench.planning.flags import by_phase
from cgbench.planning.phase_optimum import phase_cost, phase_optimum
from cgbench.planning.phases import PhasePlan, ranges
from cgbench.planning.study import Outcome
from cgbench.planning.tier_plans import Deployment, expected_cost
from cgbench.tables.plan_cells import Section, cost, counted, percent, setting, span_of, workload
from cgbench.tables.plan_rows import PhaseRow, length_rows, phase_rows
from cgbench.words import Phase


def by_phase_section(outcome: Outcome, found: PhasePlan) -> Section:
    """Return which graphs each phase has, and in the last row what no phase may lack."""
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
    last = ("in all", "", str(found.num_graphs), _ranges(eager), percent(share), "")
    rows = (*map(_phase_row, phase_rows(outcome)), last)
    notes = [f"{_name_of(each.phase)}: {each.note}" for each in found.phases if each.note]
    if mixed := found.mixed_tokens:
        notes.append(
            f"batches that hold a prefill: {counted(len(mixed), 'graph')}, {min(mixed)} to "
            f"{max(mixed)} tokens"
        )
    if outcome.memory_bytes:
        mib = outcome.memory_bytes / 1024**2
        notes.append(f"memory of all graphs: about {mib:.0f} MiB, {outcome.memory.source}")
    title = f"Graphs by phase, {outcome.request.policy}, {setting(outcome)}"
    return Section(title, headings, rows, (*notes, *_lists_by_phase(outcome)))


def by_length_section(outcome: Outcome, found: Deployment) -> Section:
    """Return a draft schedule's graphs, a row a draft length."""
    headings = ("draft length", "requests", "graphs", "eager [req]")
    rows = [
        (f"k = {row.spec_tokens}", _shown(row.requests), str(row.graphs), _shown(row.eager))
        for row in length_rows(found)
    ]
    last = ("all", "", str(found.num_graphs), _ranges(found.eager_batch_sizes))
    expected = cost(expected_cost(outcome.request, found, outcome.costs_by_length))
    unit = outcome.unit_words if found.eager_batch_sizes else outcome.unit
    note = f"expected cost of an iteration, drafts included: {expected} {unit}"
    title = f"Graphs by draft length, {outcome.request.policy}"
    return Section(title, headings, (*rows, last), (note,))


def replay_section(outcomes: Sequence[Outcome]) -> Section:
    """Return what a request trace gives when it is replayed over each plan."""
    headings = (
        "policy",
        "iterations",
        "in a graph",
        "mean batch [req]",
        "padding [ms]",
        "TPOT p50 [ms]",
        "TPOT p90 [ms]",
        "TPOT p99 [ms]",
    )
    rows, notes = list[tuple[str, ...]](), list[str]()
    for outcome in outcomes:
        found, name = outcome.admission, outcome.request.policy
        assert found
        rows.append(
            (
                name,
                str(found.num_iterations),
                percent(found.in_graph_share),
                cost(found.mean_batch_size),
                cost(found.padding_ms),
                *(cost(found.tpot_percentile(percent)) for percent in (50, 90, 99)),
            )
        )
        tenths = ", ".join(cost(each) for each in found.tenths)
        notes.append(f"{name}: batch size in each tenth of the time: {tenths}")
        if state := found.absorbing:
            notes.append(f"warning: {name}: {_absorbing(state)}")
    title = f"Replay of {workload(outcomes[0])}, k = {outcomes[0].request.spec_tokens}"
    return Section(title, headings, tuple(rows), tuple(notes))


def _absorbing(state: Absorbing) -> str:
    return (
        f"absorbing: above {state.above} requests decode runs eager, at most "
        f"{state.eager:.0f} tokens/s where {state.arriving:.0f} arrive. The batch does not come "
        f"back to its graphs, which reach {state.in_graphs:.0f}"
    )


_DRAFT_NAMES = {Phase.DRAFT_FIRST: "draft 1", Phase.DRAFT_REST: "drafts 2..k"}


def _name_of(phase: Phase) -> str:
    return _DRAFT_NAMES.get(phase, phase.value)


def _phase_row(row: PhaseRow) -> tuple[str, ...]:
    return (
        _name_of(Phase(row.phase)),
        str(row.tokens_per_request),
        str(row.graphs),
        _shown(row.eager),
        percent(row.eager_share),
        percent(row.mean_padding_frac),
    )


def _lists_by_phase(outcome: Outcome) -> Iterator[str]:
    """Yield what ``optimal`` would choose for an engine with a list for each phase, with as many
    graphs.
    """
    request, shared = outcome.request, outcome.phases
    if shared is None or not by_phase(request):
        return
    best = phase_optimum(request, shared.num_graphs)
    shared_cost = phase_cost(request, shared)
    lists = "; ".join(
        f"{_name_of(each.phase)} {', '.join(map(str, each.batch_sizes)) or 'none'}"
        for each in best.phases
    )
    saved = percent(1 - best.cost / shared_cost)
    yield f"a list for each phase, as many graphs: {lists}, saves {saved}"


_MAX_RANGES = 4


def _ranges(sizes: Sequence[int]) -> str:
    return _shown(tuple(ranges(sizes)))


def _shown(found: Sequence[tuple[int, int]]) -> str:
    """Return ranges as text, with neighbouring sizes together: 17-20, 33. A long row of them is
    cut.
    """
    text = ", ".join(span_of(first, last) for first, last in found[:_MAX_RANGES])
    if len(found) <= _MAX_RANGES:
        return text
    count = sum(last - first + 1 for first, last in found)
    return f"{text}, .. {found[-1][1]} ({count} in all)"
