"""Write a comparison for machines: JSON, GitHub annotations, JUnit, github-action-benchmark."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from cgbench.gate.comparison import Comparison
from cgbench.gate.verdicts import ITERATION, MEMORY, TPOT, Line
from cgbench.gate.wording import change, evidence, subject, summary
from cgbench.words import Verdict

LEVELS = {
    Verdict.REGRESSED: "error",
    Verdict.NOT_COMPARABLE: "error",
    Verdict.INCONCLUSIVE: "warning",
    Verdict.CHANGED: "notice",
    Verdict.FASTER: "notice",
    Verdict.IMPROVED: "notice",
}

SMALLER_IS_BETTER = frozenset(metric.title for metric in (ITERATION, TPOT, MEMORY))


def to_json(comparison: Comparison) -> str:
    """Return all of a comparison as JSON. It has the rules, counts and differences, and every line,
    gated or not.
    """
    rules = comparison.rules
    content = {
        "base": str(comparison.base),
        "new": str(comparison.new),
        "model": comparison.model,
        "min_effect": rules.min_effect,
        "confidence": rules.confidence,
        "interval_level": comparison.level,
        "gate": sorted(rules.gate.metrics),
        "gate_eager": rules.gate.with_eager,
        "exit_code": int(comparison.exit_code),
        "gated": comparison.counts,
        "differences": comparison.differences,
        "lines": [asdict(line) for line in comparison.lines],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def github(comparison: Comparison) -> str:
    """Return workflow commands for GitHub: errors and warnings for gated lines, notices for what
    changed.
    """
    annotations = [text for line in comparison.lines for text in _annotation(line)]
    return "\n".join([*annotations, summary(comparison)])


def _annotation(line: Line) -> Iterator[str]:
    """Yield a line's annotation. There is none for what is as before. A line that decides nothing
    is at most a notice.
    """
    level = LEVELS.get(line.verdict)
    if level is None or (not line.gated and level == "warning"):
        return
    title = f"{line.verdict}: {subject(line)}"
    where = _escaped(title).replace(",", "%2C").replace(":", "%3A")
    yield f"::{level if line.gated else 'notice'} title={where}::{_escaped(evidence(line))}"


def _escaped(text: str) -> str:
    """Escape a command's data as the runner's own toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def junit(comparison: Comparison) -> str:
    """Return JUnit XML with a test case for each gated line.

    It is a failure if the line regressed, and an error if nothing could be decided. So neither
    looks green.
    """
    verdicts = [line.verdict for line in comparison.gated]
    undecided = {Verdict.NOT_COMPARABLE, Verdict.INCONCLUSIVE}
    suite = Element(
        "testsuite",
        name="cgbench compare",
        tests=str(len(verdicts)),
        failures=str(verdicts.count(Verdict.REGRESSED)),
        errors=str(sum(verdict in undecided for verdict in verdicts)),
    )
    for line in comparison.gated:
        case = SubElement(suite, "testcase", classname=comparison.model, name=subject(line))
        if line.verdict is Verdict.REGRESSED:
            SubElement(case, "failure", type=line.verdict, message=evidence(line))
        elif line.verdict in undecided:
            SubElement(case, "error", type=line.verdict, message=evidence(line))
        else:
            SubElement(case, "system-out").text = f"{line.verdict}: {evidence(line)}"
    indent(suite)
    return tostring(suite, encoding="unicode", xml_declaration=True)


def benchmark_json(comparison: Comparison) -> str:
    """Return NEW's numbers for github-action-benchmark's ``customSmallerIsBetter``.

    They are latency, TPOT and memory of the gated cells. Acceptance is not among them, because more
    of it is better. It shows in TPOT.
    """
    rows = [_benchmark(comparison, line) for line in _benchmarked(comparison)]
    return json.dumps(rows, indent=2, allow_nan=False)


def why_empty(comparison: Comparison) -> str | None:
    """Return a line that explains why ``benchmark_json`` has no number, or None if it has some. Its
    reader refuses an empty list without a reason.
    """
    if any(_benchmarked(comparison)):
        return None
    missing = "no latency, TPOT or memory of NEW is gated"
    return f"--format benchmark-json is empty: {missing}. {summary(comparison)}"


def _benchmarked(comparison: Comparison) -> Iterator[Line]:
    return (
        line for line in comparison.gated if line.what in SMALLER_IS_BETTER and line.new is not None
    )


def _benchmark(comparison: Comparison, line: Line) -> dict[str, object]:
    name = f"{comparison.model}: {subject(line)}"
    extra = f"{line.verdict} {change(line, line.effect)} against {comparison.base}"
    return {"name": name, "unit": line.unit, "value": line.new, "extra": extra}
