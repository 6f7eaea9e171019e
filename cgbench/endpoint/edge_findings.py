"""Hold what an audit of a server found: a finding an edge, and the whole with its exit code."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from cgbench.endpoint.acceptance_across import AcceptanceFound
from cgbench.endpoint.endpoint_request import EndpointRequest
from cgbench.endpoint.near_ties import Noise
from cgbench.errors import ExitCode, foremost


class EdgeVerdict(StrEnum):
    """A verdict is the conclusion of an audit about one edge."""

    HOLDS = "holds"
    WRONG = "wrong"
    FLAKY = "flaky"
    """Wrong in some of the attempts."""
    UNCLEAR = "unclear"
    """The batch did not reach the edge, or a difference cannot be judged."""
    NOT_RUN = "not run"


EXIT_CODES = {
    EdgeVerdict.WRONG: ExitCode.ANSWER_IS_NO,
    EdgeVerdict.FLAKY: ExitCode.ANSWER_IS_NO,
    EdgeVerdict.UNCLEAR: ExitCode.INCONCLUSIVE,
    EdgeVerdict.NOT_RUN: ExitCode.INCONCLUSIVE,
}


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A ``WrongRow`` is one request whose answer was wrong, with both answers, for ``--repro``."""

    row: int
    prompt: str
    max_tokens: int
    delay_s: float
    text: str
    expected: tuple[str, ...]
    got: tuple[str, ...]
    position: int | None
    gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeFinding:
    """An ``EdgeFinding`` states what was found at one edge.

    ``edge`` is its batch size, or ``alone`` for one request at a time. ``most_at_once`` requests
    were seen to decode together, and ``peak`` were asked for. ``gap_ms`` is the median time
    between arrivals. ``details`` say what was wrong first. ``reason`` says why nothing was decided.
    """

    edge: str
    peak: int
    changes: tuple[str, ...]
    verdict: EdgeVerdict
    attempts: int = 0
    wrong_attempts: int = 0
    requests: int = 0
    near_ties: int = 0
    largest_gap: float = 0.0
    most_at_once: int = 0
    gap_ms: float | None = None
    acceptance: AcceptanceFound | None = None
    details: str = ""
    reason: str = ""
    seconds: float = 0.0
    rows: tuple[WrongRow, ...] = field(default=(), repr=False)

    def facts(self) -> dict[str, object]:
        """Return the finding as JSON values, without the answers that ``--repro`` keeps."""
        return {name: value for name, value in asdict(self).items() if name != "rows"}


@dataclass(frozen=True, slots=True)
class EndpointResult:
    """An ``EndpointResult`` holds what an audit was asked for, and its findings.

    ``server`` is in words what its answers hold, such as token ids and logprobs.
    """

    request: EndpointRequest
    model: str
    server: str
    plan: str
    noise: Noise
    findings: tuple[EdgeFinding, ...]
    requests: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[EdgeVerdict, int]:
        """Return the number of findings by verdict."""
        found = Counter(finding.verdict for finding in self.findings)
        return {verdict: found[verdict] for verdict in EdgeVerdict if found[verdict]}

    @property
    def exit_code(self) -> ExitCode:
        """Return the exit code of the audit: 0, 1 if an edge failed, 4 if one stayed undecided."""
        return foremost([EXIT_CODES.get(verdict, ExitCode.OK) for verdict in self.counts])

    def to_json(self) -> str:
        """Return everything but the wrong answers as one JSON object."""
        content = {
            "arguments": self.request.to_record(),
            "model": self.model,
            "server": self.server,
            "plan": self.plan,
            "noise": asdict(self.noise),
            "notes": list(self.notes),
            "requests": self.requests,
            "seconds": self.seconds,
            "exit_code": int(self.exit_code),
            "edges": [finding.facts() for finding in self.findings],
        }
        return json.dumps(content, indent=2, allow_nan=False)
