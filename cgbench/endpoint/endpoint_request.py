"""Define the request for an audit of a server, and the plan that the server is held to."""

from dataclasses import dataclass, replace
from typing import Annotated

from cgbench.errors import BadInputError
from cgbench.inputs import check_known, check_whole
from cgbench.planning import CaptureUnit, PlanRequest, check_batch_size
from cgbench.planning.draft_schedule import DraftSchedule
from cgbench.planning.launch_lines import read_launch
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.keys import Key, Recorded

CHECKS = ("tokens", "acceptance")
DEFAULT_PROMPTS = 16


@dataclass(frozen=True, slots=True)
class EndpointRequest(Recorded):
    """An ``EndpointRequest`` states what ``cgbench audit --endpoint`` judges.

    ``model`` is the name that the server serves, None for its first one. The plan comes from
    ``launch_line``, or from ``engine`` with ``max_num_seqs`` and ``spec_tokens``. ``edges`` are
    batch sizes, none for all. ``max_requests`` and ``max_seconds`` bound the whole audit.
    """

    endpoint: str = ""
    model: str | None = None
    against: str | None = None
    engine: str | None = None
    launch_line: Annotated[str | None, Key("from", "--from")] = None
    max_num_seqs: int | None = None
    spec_tokens: int | None = None
    capture_sizes: tuple[int, ...] = ()
    capture_unit: CaptureUnit = CaptureUnit.REQUESTS
    max_num_batched_tokens: int = DEFAULT_MAX_BATCHED_TOKENS
    edges: tuple[int, ...] = ()
    checks: tuple[str, ...] = ()
    prompts: str | None = None
    num_prompts: int = DEFAULT_PROMPTS
    max_new_tokens: int = 64
    repeats: int = 2
    max_requests: int = 8192
    max_seconds: int = 600
    timeout: int = 60
    exact: bool = False
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        Recorded.__post_init__(self)
        check_known("--checks", self.checks, CHECKS)
        check_whole("--num-prompts", self.num_prompts, 2, 256)
        check_whole("--max-new-tokens", self.max_new_tokens, 8, 4096)
        check_whole("--repeats", self.repeats, 0, 20)
        check_whole("--max-requests", self.max_requests, 1)
        check_whole("--max-seconds", self.max_seconds, 1)
        check_whole("--timeout", self.timeout, 1)

    @property
    def judged(self) -> tuple[str, ...]:
        """Return the checks to make. An empty ``checks`` stands for all of them."""
        return self.checks or CHECKS


@dataclass(frozen=True, slots=True)
class Planned:
    """A ``Planned`` is the plan that a server is held to, with notes on how it was read."""

    request: PlanRequest
    schedule: DraftSchedule | None
    notes: tuple[str, ...] = ()

    @property
    def num_draft_lengths(self) -> int:
        """Return how many draft lengths above 0 there are."""
        lengths = (self.request.spec_tokens,) if self.schedule is None else self.schedule.lengths
        return len({*lengths} - {0})

    @property
    def drafts_in_parts(self) -> bool:
        """Return whether some batch sizes have no drafts, so that a text is drafted in parts."""
        return self.schedule is not None and 0 in self.schedule.lengths

    @property
    def words(self) -> str:
        """Return the plan in a few words."""
        k = self.request.spec_tokens
        lengths = f"k {k}" if self.schedule is None else "k by batch size"
        return f"{self.request.policy}, {lengths}, up to {self.request.max_batch_size} requests"


def planned(request: EndpointRequest) -> Planned:
    """Return the plan of a launch line, or of an engine's rule.

    Raise ``BadInputError``, naming the flag that is missing, and ``PlanError``.
    """
    if request.launch_line is not None:
        for flag, value in (
            ("--max-num-seqs", request.max_num_seqs),
            ("--spec-tokens", request.spec_tokens),
            ("--capture-sizes", request.capture_sizes or None),
        ):
            if value is not None:
                raise BadInputError(f"{flag}: not beside --from, which says it. Drop one")
        launch = read_launch(request.launch_line, None, None, request.engine)
        return Planned(launch.request, launch.schedule, (*launch.notes, *launch.warnings))
    engine = request.engine or ("explicit" if request.capture_sizes else None)
    if engine is None:
        raise BadInputError(
            "--engine: give the engine's policy, such as vllm-0.33, or its launch line in --from"
        )
    if request.max_num_seqs is None or request.spec_tokens is None:
        flag = "--max-num-seqs" if request.max_num_seqs is None else "--spec-tokens"
        raise BadInputError(f"{flag}: give what the engine runs with, or its launch line in --from")
    check_batch_size("--max-num-seqs", request.max_num_seqs)
    plan_request = PlanRequest(
        spec_tokens=request.spec_tokens,
        max_batch_size=request.max_num_seqs,
        policy=engine,
        capture_sizes=request.capture_sizes,
        max_num_batched_tokens=request.max_num_batched_tokens,
    )
    if request.capture_sizes:
        plan_request = replace(plan_request, capture_unit=request.capture_unit)
    return Planned(plan_request, None)
