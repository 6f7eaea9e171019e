"""This package chooses the batch sizes that get a CUDA graph.

It holds pure functions from a request to a plan, with no torch. ``plan(PlanRequest(spec_tokens=3,
max_batch_size=64))`` is the whole interface. A request may carry a workload (``Concurrency``) and
measured costs (``Costs``) for the policy ``optimal``.
"""

from cgbench.planning.concurrency import Concurrency
from cgbench.planning.costs import Costs, Curve
from cgbench.planning.plan import Bucket, CapturePlan, Span
from cgbench.planning.plan_request import (
    MAX_BATCH_SIZE,
    MAX_PLANNED_SPEC_TOKENS,
    MAX_SPEC_TOKENS,
    CaptureUnit,
    PlanRequest,
    check_batch_size,
)
from cgbench.planning.policies import POLICIES, plan

__all__ = [
    "MAX_BATCH_SIZE",
    "MAX_PLANNED_SPEC_TOKENS",
    "MAX_SPEC_TOKENS",
    "POLICIES",
    "Bucket",
    "CapturePlan",
    "CaptureUnit",
    "Concurrency",
    "Costs",
    "Curve",
    "PlanRequest",
    "Span",
    "check_batch_size",
    "plan",
]
