"""Set what an engine says it captured beside what its policy predicts from the same flags."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cgbench.errors import PlanError
from cgbench.planning.phases import PhasePlan, phases_of
from cgbench.planning.plan_request import CaptureMode, PlanRequest
from cgbench.planning.policies import POLICIES, plan
from cgbench.words import Phase

MODES = {
    "NONE": CaptureMode.NONE,
    "PIECEWISE": CaptureMode.PIECES,
    "FULL_DECODE_ONLY": CaptureMode.DECODE_ONLY,
}
"""vLLM's ``cudagraph_mode`` as a capture mode. The others have whole graphs and pieces."""


@dataclass(frozen=True, slots=True)
class CapturedPhase:
    """A ``CapturedPhase`` holds the graphs of one phase beside the plan's, in requests.

    ``piece_tokens`` are sizes that the engine captured in pieces. ``note`` is the plan's line on
    the phase.
    """

    spec_tokens: int
    phase: Phase
    planned: tuple[int, ...]
    captured: tuple[int, ...]
    piece_tokens: tuple[int, ...] = ()
    note: str = ""

    @property
    def differs(self) -> bool:
        """Return whether the two lists are not the same."""
        return self.planned != self.captured

    @property
    def finding(self) -> str | None:
        """Return the line of a difference with both lists, or None if there is none."""
        if not self.differs:
            return None
        line = (
            f"k={self.spec_tokens}, {self.phase}: graphs planned at {_listed(self.planned)} "
            f"requests, captured at {_listed(self.captured)} requests"
        )
        return f"{line} ({self.note})" if self.note else line


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes)) or "no number of"


def policy_of(engine: str, version: str) -> str | None:
    """Return the policy of the newest release of ``engine`` that is not above ``version``.

    It is None if no policy is that old.
    """
    ours = _release(version)
    known = [
        (_release(name.removeprefix(f"{engine}-")), name)
        for name in POLICIES
        if name.startswith(f"{engine}-") and name.removeprefix(f"{engine}-")[:1].isdigit()
    ]
    fitting = [(release, name) for release, name in known if release <= ours[: len(release)]]
    return max(fitting)[1] if fitting else None


def _release(text: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: 0.26.0rc1 gives (0, 26, 0)."""
    numbers = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def request_of(
    policy: str,
    spec_tokens: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    arguments: Mapping[str, Any],
) -> PlanRequest:
    """Return the question to the planner that an engine's flags ask.

    ``arguments`` are those that the user gave the engine, by the names of its constructor.
    """
    compilation = arguments.get("compilation_config")
    stated = compilation if isinstance(compilation, Mapping) else {}
    mode = MODES.get(str(stated.get("cudagraph_mode", "")).upper(), CaptureMode.FULL)
    return PlanRequest(
        spec_tokens=spec_tokens,
        max_batch_size=int(arguments.get("max_num_seqs", max_num_seqs)),
        policy=policy,
        max_num_batched_tokens=int(arguments.get("max_num_batched_tokens", max_num_batched_tokens)),
        graph_sizes=tuple(stated.get("cudagraph_capture_sizes") or ()),
        graph_maximum=stated.get("max_cudagraph_capture_size"),
        interactivity=arguments.get("performance_mode") == "interactivity",
        capture_mode=CaptureMode.NONE if arguments.get("enforce_eager") else mode,
    )


def beside_plan(
    request: PlanRequest, graphs: Iterable[Mapping[str, Any]]
) -> tuple[CapturedPhase, ...]:
    """Return each phase with its planned and its captured graphs.

    ``graphs`` are those of one k, as an engine's driver reports them. Raise ``PlanError`` if the
    policy refuses the request.
    """
    planned = phases_of(request, plan(request))
    return tuple(_phases(request.spec_tokens, planned, list(graphs)))


def _phases(
    spec_tokens: int, planned: PhasePlan, graphs: list[Mapping[str, Any]]
) -> Iterator[CapturedPhase]:
    found = {Phase(each["phase"]): each for each in graphs}
    names = dict.fromkeys([*(each.phase for each in planned.phases), *found])
    # What holds of the whole plan stands at its first phase.
    shared = next((each.note for each in planned.phases), "")
    for phase in names:
        wanted, held = planned.of(phase), found.get(phase, {})
        yield CapturedPhase(
            spec_tokens,
            phase,
            planned=() if wanted is None else wanted.batch_sizes,
            captured=tuple(held.get("requests", ())),
            piece_tokens=tuple(held.get("piece_tokens", ())),
            note=(wanted.note if wanted is not None else "") or shared,
        )


def refusal(error: PlanError) -> str:
    """Return the line of a plan that cannot be made, where a comparison was wanted."""
    return f"not compared with a plan: {error}"
