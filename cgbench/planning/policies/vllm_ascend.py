"""Plan as vLLM's plug-in for Ascend NPUs does (vllm-project/vllm-ascend). Sizes are tokens.

``--tp`` has a rule with sequence parallelism alone, where the plug-in keeps the sizes that tp
divides. ``tp_size`` above 1 means that it is on.
"""

from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_exact_tokens, off_stride, truncated
from cgbench.planning.policies.registry import policy
from cgbench.planning.policies.vllm import CEILING_TOKENS, TP_MODE, grid


@policy(
    "vllm-ascend-0.30",
    reads="max_num_batched_tokens",
    tp_mode=TP_MODE,
    release="0.30",
)
def vllm_ascend_0_30(request: PlanRequest) -> CapturePlan:
    """Plan vllm-ascend 0.30's list: vLLM's grid under min(max_num_seqs * (k + 1), 512) tokens.

    The ceiling has no factor 2, and the decode batches' own sizes are not added. So a size is
    rounded up to a multiple of k + 1 only if that is within the grid. A max_num_seqs off the grid
    runs eager. A report measured that 7.5 times slower (pull request 16623).
    """
    tokens = token_list(request)
    q = request.query_len
    rounded = {-(-size // q) * q for size in tokens}
    kept = sorted(size for size in rounded if size <= max(tokens, default=0))
    ceiling = max(tokens, default=0)
    bare = from_exact_tokens(request, kept)
    warnings = [
        *truncated(request, ceiling, "--max-cudagraph-capture-size"),
        *off_stride(request, bare.batch_sizes, _ceiling(request) // q),
    ]
    return from_exact_tokens(request, kept, warnings)


def token_list(request: PlanRequest) -> list[int]:
    """Return the sizes in tokens, ascending: the engine's grid, or a user's list."""
    listed = request.graph_sizes or grid(_ceiling(request))
    kept = {size for size in listed if size <= request.max_num_batched_tokens}
    return sorted(size for size in kept if size % request.tp_size == 0)


def _ceiling(request: PlanRequest) -> int:
    full = request.max_batch_size * request.query_len
    most = request.graph_maximum or min(full, CEILING_TOKENS)
    return min(most, request.max_num_batched_tokens)
