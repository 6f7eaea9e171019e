"""Keep the policies by name, and apply the one that a request names."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from cgbench.errors import PlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS, CaptureMode, PlanRequest

Policy = Callable[[PlanRequest], CapturePlan]

POLICIES: dict[str, Policy] = {}

_READS: dict[str, frozenset[str]] = {}

_TP_MODES: dict[str, str] = {}

RELEASES: dict[str, str] = {}
"""Each policy of an engine was last checked against this release of it."""

# Only some engines have a rule for these fields. Each has its flag, and the value that asks for
# nothing.
_SPECIAL = {
    "tp_size": ("--tp", 1),
    "pad": ("--no-padding", True),
    "blackwell": ("--blackwell", False),
    "max_num_batched_tokens": ("--max-num-batched-tokens", DEFAULT_MAX_BATCHED_TOKENS),
    "interactivity": ("--interactivity", False),
    "module_per_draft": ("--module-per-draft", False),
}


_WITHOUT_DECODE_GRAPHS = {
    CaptureMode.NONE: "graphs are switched off: every batch runs eager",
    CaptureMode.PIECES: (
        "graphs in pieces alone: attention runs between them, and drafts 2..k run eager"
    ),
}


def policy(
    name: str, *, reads: str = "", tp_mode: str | None = None, release: str | None = None
) -> Callable[[Policy], Policy]:
    """Register the decorated function as the policy ``name``.

    ``reads`` names, with spaces between, the fields of ``PlanRequest`` from ``_SPECIAL`` that the
    engine has a rule for. ``tp_mode`` is the mode of the engine in which it has a rule for tp_size.
    A field without a rule changes nothing, and the plan warns of it. If tp_size is above 1, that
    mode is on, and the plan warns of that too. ``release`` is the engine's release that the rule
    was last checked against.
    """

    def register(function: Policy) -> Policy:
        POLICIES[name] = function
        _READS[name] = frozenset(reads.split()) | ({"tp_size"} if tp_mode else set())
        if tp_mode:
            _TP_MODES[name] = tp_mode
        if release:
            RELEASES[name] = release
        return function

    return register


def plan(request: PlanRequest) -> CapturePlan:
    """Apply the request's policy, and return its plan.

    Raise ``PlanError`` for an unknown policy, and for whatever the policy refuses.
    """
    if request.policy not in POLICIES:
        known = ", ".join(sorted(POLICIES))
        raise PlanError(f"--policy {request.policy}: unknown. Choose one of {known}")
    found = POLICIES[request.policy](request)
    if request.capture_mode in _WITHOUT_DECODE_GRAPHS:
        return replace(found, buckets=(), warnings=(_WITHOUT_DECODE_GRAPHS[request.capture_mode],))
    return replace(found, warnings=(*found.warnings, *_unread(request), *_tp_mode(request)))


def reads(name: str, field: str) -> bool:
    """Check that the policy ``name`` has a rule for this field of ``PlanRequest``."""
    return field in _READS.get(name, frozenset())


def _unread(request: PlanRequest) -> Iterator[str]:
    for field, (flag, neutral) in _SPECIAL.items():
        if getattr(request, field) != neutral and field not in _READS[request.policy]:
            yield f"{flag} changes nothing: {request.policy} has no rule for it"


def _tp_mode(request: PlanRequest) -> Iterator[str]:
    if request.tp_size > 1 and request.policy in _TP_MODES:
        yield (
            f"--tp {request.tp_size}: as with {_TP_MODES[request.policy]} on. Where it is off, "
            f"{request.policy} has no rule for it, and its plan is that of --tp 1"
        )
