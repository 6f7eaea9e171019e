"""Findings as plain values: what ``--json``, ``--repro`` and the table are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from cgbench.checks.findings import Answer, Difference, Finding, Where


def finding_facts(finding: Finding, title: str, seconds: float) -> dict[str, Any]:
    """A finding as JSON values. ``details`` is its difference in a line; ``difference`` names the
    tensors that ``--repro`` writes, without their values."""
    difference = finding.difference
    return {
        "check": finding.check,
        "title": title,
        "verdict": finding.answer.value,
        "seconds": seconds,
        "figures": json_value(finding.figures),
        "details": None if difference is None else details(difference),
        "difference": None if difference is None else _difference_facts(difference),
        "reason": finding.reason,
    }


def details(difference: Difference) -> str:
    """The first thing that was wrong, in a line: where, what, and both tokens and logits."""
    place = ", ".join(_place(difference.where))
    tokens = [
        f"{name} {token}" + ("" if logit is None else f" (logit {logit:.6g})")
        for name, token, logit in (
            ("expected", difference.expected, difference.expected_logit),
            ("got", difference.got, difference.got_logit),
        )
        if token is not None
    ]
    text = f"{place}: {difference.text}" if place else difference.text
    return "; ".join([text, *tokens])


def overall(findings: Sequence[Finding]) -> Answer:
    """Wrong where any check is; what was not run does not decide."""
    answers = {finding.answer for finding in findings}
    return next((each for each in (Answer.WRONG, Answer.HOLDS) if each in answers), Answer.NOT_RUN)


def json_value(value: Any) -> Any:
    """``value`` in JSON's own types; a number that is not finite is its name."""
    if isinstance(value, Mapping):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)


WORDS = {"scope": "{}", "spec_tokens": "k {}"}


def _place(where: Where) -> list[str]:
    values = ((field.name, getattr(where, field.name)) for field in fields(where))
    pattern = "{} {{}}".format
    return [
        WORDS.get(name, pattern(name.replace("_", " "))).format(value)
        for name, value in values
        if value is not None
    ]


def _difference_facts(difference: Difference) -> dict[str, Any]:
    named = ("text", "expected", "got", "expected_logit", "got_logit")
    shapes = {name: list(tensor.shape) for name, tensor in difference.inputs.items()}
    return {
        **{name: json_value(getattr(difference, name)) for name in named},
        "where": asdict(difference.where),
        "inputs": shapes,
    }
