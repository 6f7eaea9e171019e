"""Plan as nano-vllm does (GeeeekExplorer/nano-vllm, ``nanovllm/engine/model_runner.py``).

Sizes are requests. Tensor parallelism has no rule here. The engine has no speculative decoding.
With k above 0 its rule is applied to requests all the same, and the plan warns of that.
"""

from collections.abc import Iterator

from cgbench.planning.plan import CapturePlan
from cgbench.planning.plan_request import PlanRequest
from cgbench.planning.policies.build import from_requests, off_stride
from cgbench.planning.policies.registry import policy

MAX_REQUESTS = 512


@policy("nano-vllm", release="0.2.0")
def nano_vllm(request: PlanRequest) -> CapturePlan:
    """Plan nano-vllm's list: 1, 2, 4, 8, then by 16 to min(max_num_seqs, 512).

    The source is ``capture_cudagraph``. max_num_seqs is not appended. 1, 2, 4 and 8 are always
    listed, over buffers of max_num_seqs rows. So below 8 requests the graphs too large for the
    buffers hold max_num_seqs.
    """
    most = min(request.max_batch_size, MAX_REQUESTS)
    sizes = {min(size, most) for size in (1, 2, 4, 8, *range(16, most + 1, 16))}
    return from_requests(request, sorted(sizes), _warnings(request, sizes))


def _warnings(request: PlanRequest, sizes: set[int]) -> Iterator[str]:
    if request.spec_tokens:
        yield "nano-vllm has no speculative decoding: its rule for requests, applied to k + 1"
    yield from off_stride(request, sizes, MAX_REQUESTS)
    if max(sizes) < request.max_batch_size <= MAX_REQUESTS:
        yield "nano-vllm does not fall back to eager there: looking up a graph fails"
