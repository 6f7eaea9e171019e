"""Write a comparison of engines as Markdown: times, what each engine is, plan beside capture."""

from collections.abc import Iterable, Iterator

from cgbench.engines.engine_rows import EngineRow, EnginesTable
from cgbench.rundir.record_parts import EngineFacts, PhaseFacts
from cgbench.tables.markdown import markdown_table

HEADINGS = (
    *("engine", "k", "batch", "graph", "wall ms / step", "GPU busy ms / step"),
    *("kernels / step", "graph launches / step", "tokens / step", "tok/s", "blocks"),
)

EXPLAINED = (
    "Wall is from one step's result on the host to the next one's. GPU busy is the union of "
    "kernels and copies, from profiled steps apart from the timed ones."
)

RANDOM = "Weights are random, so tokens a step and tok/s say nothing about the model."


def engines_markdown(table: EnginesTable) -> str:
    """Return all tables of a comparison, with what the rows share above them."""
    parts = [
        "# Engines side by side",
        f"```\n{table.command}\n```",
        "\n".join(f"- {line}" for line in _shared(table)),
        markdown_table(HEADINGS, [_cells(row) for row in table.rows], left=HEADINGS[:1]),
    ]
    if table.engines:
        parts.append("## The engines\n\n" + "\n".join(_described(table)))
    phases = list(_phase_rows(table.engines))
    if phases:
        headings = ("engine", "k", "phase", "planned, requests", "captured, requests", "same")
        parts.append("## Planned and captured graphs")
        parts.append(markdown_table(headings, phases, left=headings))
        parts += [f"- {line}" for line in table.findings]
    return "\n\n".join(parts) + "\n"


def _shared(table: EnginesTable) -> Iterator[str]:
    where = table.environment.get("gpu") or table.environment.get("cpu")
    yield f"{table.model}, {table.dtype}, context {table.context_len}, experts {table.routing}"
    yield f"{where}, torch {table.environment['torch']}"
    yield EXPLAINED
    if "random weights" in table.model:
        yield RANDOM
    turns = {each["turns"] for each in table.engines}
    for line in sorted(turns):
        yield f"Turns: {line}"
    yield from (*table.omissions, *table.failures)


def _cells(row: EngineRow) -> tuple[str, ...]:
    start = (row.engine, str(row.spec_tokens), str(row.batch_size))
    if row.wall_ms is None:
        return (*start, "", row.status, *[""] * 6)
    width = "" if row.half_width_ms is None else f" ± {row.half_width_ms:.3f}"
    return (
        *start,
        "eager" if row.bucket is None else str(row.bucket),
        f"{row.wall_ms:.3f}{width}",
        _number(row.gpu_busy_ms, 3),
        _number(row.kernels_per_step, 0),
        _number(row.graph_launches_per_step, 1),
        _number(row.tokens_per_step, 2),
        _number(row.tokens_per_s, 0),
        f"{row.blocks}" if row.status == "ok" else f"{row.blocks}, {row.status}",
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _described(table: EnginesTable) -> Iterator[str]:
    for each in table.engines:
        facts = ", ".join(f"{name} {value}" for name, value in each["facts"].items())
        memory = each["memory_bytes"]
        held = "" if memory is None else f", at most {memory / 1e9:.1f} GB in it"
        yield (
            f"- {each['name']} {each['version']}: import {each['import_s']:.1f} s, start and "
            f"capture {each['start_s']:.1f} s{held}. {facts}"
        )
        if each["name"] in table.runs:
            yield f"  Run directory: {table.runs[each['name']]}"


def _phase_rows(engines: Iterable[EngineFacts]) -> Iterator[tuple[str, ...]]:
    for each in engines:
        for phase in each["phases"]:
            yield (
                f"{each['name']} {each['version']}",
                str(phase["spec_tokens"]),
                phase["phase"],
                _listed(phase["planned"]),
                _captured(phase),
                "yes" if phase["planned"] == phase["captured"] else "**no**",
            )


def _captured(phase: PhaseFacts) -> str:
    pieces = phase["piece_tokens"]
    more = f" (and {len(pieces)} sizes in pieces)" if pieces else ""
    return _listed(phase["captured"]) + more


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "none"
