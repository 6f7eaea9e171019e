"""Plan as lmdeploy does (InternLM/lmdeploy,
``lmdeploy/pytorch/backends/cuda/graph_runner/runner.py``).

Sizes are requests. A graph is captured when its batch size is first needed, separately for each
number of tokens per request. Tensor parallelism has no rule here.
"""

from cgbench.errors import RefusedPlanError
from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests
from cgbench.planning.policies.registry import policy

STEP = 256


@policy("lmdeploy-0.18", release="0.18.0")
def lmdeploy_0_18(request: PlanRequest) -> CapturePlan:
    """Plan lmdeploy 0.18's list: powers of two to 256, then by 256, with the maximum appended.

    A user's own ``cudagraph_capture_batch_sizes`` above max_batch_size are dropped, and
    max_batch_size is appended. Raise ``RefusedPlanError`` if all of them are above it.
    """
    most = request.max_batch_size
    listed = request.graph_sizes or (1, 2, 4, 8, 16, 32, 64, 128, *range(STEP, most + 1, STEP))
    kept = {size for size in listed if size <= most}
    if not kept:
        raise RefusedPlanError(
            request.policy,
            f"cudagraph_capture_batch_sizes that are all above max_batch_size {most}. List a "
            "smaller one",
        )
    return from_requests(request, sorted(kept | {most}))
