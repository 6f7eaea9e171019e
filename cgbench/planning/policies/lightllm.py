"""Plan as LightLLM does (ModelTC/lightllm,
``lightllm/common/basemodel/graph/base/decode_graph.py``).

Sizes are requests, and the engine states them in tokens. Tensor parallelism has no rule here.
"""

from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests
from cgbench.planning.policies.registry import policy

SPLIT_REQUESTS = 32
"""Every batch size up to this one has a graph. It is the default of
``--graph_split_batch_size``."""

GROWTH_REQUESTS = 16
"""Batch sizes above grow by this step. It is the default of ``--graph_grow_step_size``."""


@policy("lightllm", release="2026-10 (main)")
def lightllm(request: PlanRequest) -> CapturePlan:
    """Plan LightLLM's list: 1..32, then by 16, times mtp_step + 1, with the maximum appended.

    The maximum is ``--graph_max_batch_size``. If it is not given, max_num_seqs stands for it.
    """
    most = min(request.graph_maximum or request.max_batch_size, request.max_batch_size)
    steps = range(SPLIT_REQUESTS + GROWTH_REQUESTS, most, GROWTH_REQUESTS)
    listed = {*range(1, SPLIT_REQUESTS + 1), *steps}
    return from_requests(request, sorted({size for size in listed if size < most} | {most}))
