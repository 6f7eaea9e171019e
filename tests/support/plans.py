"""Plans made in a line."""

from cgbench.planning import CapturePlan, CaptureUnit, PlanRequest, plan


def planned(
    policy: str,
    spec_tokens: int,
    max_batch_size: int,
    capture_sizes: tuple[int, ...] = (),
    unit: CaptureUnit = CaptureUnit.REQUESTS,
) -> CapturePlan:
    return plan(PlanRequest(spec_tokens, max_batch_size, policy, capture_sizes, unit))
