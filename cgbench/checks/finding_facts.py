"""Turn findings into plain values, which ``--json``, ``--repro`` and the table are made of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias, TypedDict

from cgbench.checks.findings import Answer, Difference, Finding, Where
from cgbench.words import Scope

Figure: TypeAlias = str | int | float | list[int] | list[float] | None
"""A number or a short text that a check measured."""


class DifferenceFacts(TypedDict):
    """These are the values of a ``Difference`` in JSON. ``inputs`` holds the shape of each
    tensor.
    """

    text: str
    expected: int | None
    got: int | None
    expected_logit: float | str | None
    got_logit: float | str | None
    where: "WhereFacts"
    inputs: dict[str, list[int]]


class WhereFacts(TypedDict):
    """These are the values of a ``Where`` in JSON."""

    scope: Scope | None
    spec_tokens: int | None
    bucket: int | None
    batch_size: int | None
    row: int | None
    position: int | None


class FindingFacts(TypedDict):
    """These are the values of a ``Finding`` as ``--json`` prints them."""

    check: str
    title: str
    verdict: str
    seconds: float
    figures: dict[str, Figure]
    details: str | None
    difference: DifferenceFacts | None
    reason: str | None


def finding_facts(finding: Finding, title: str, seconds: float) -> FindingFacts:
    """Return a finding as JSON values. ``details`` is its difference in a line. ``difference``
    names the tensors that ``--repro`` writes, without their values.
    """
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
    """Return a line on the first thing that was wrong: where, what, and both tokens and logits."""
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
    """Return the answer of all checks: wrong if any is wrong, else holds if any holds. Checks that
    were not run do not decide.
    """
    answers = {finding.answer for finding in findings}
    return next((each for each in (Answer.WRONG, Answer.HOLDS) if each in answers), Answer.NOT_RUN)


def json_value(value: Any) -> Any:
    """Return ``value`` in JSON's own types. A number that is not finite becomes its name."""
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


def _difference_facts(difference: Difference) -> DifferenceFacts:
    where = difference.where
    return {
        "text": difference.text,
        "expected": difference.expected,
        "got": difference.got,
        "expected_logit": json_value(difference.expected_logit),
        "got_logit": json_value(difference.got_logit),
        "where": {
            "scope": where.scope,
            "spec_tokens": where.spec_tokens,
            "bucket": where.bucket,
            "batch_size": where.batch_size,
            "row": where.row,
            "position": where.position,
        },
        "inputs": {name: list(tensor.shape) for name, tensor in difference.inputs.items()},
    }
