"""This package holds the capture policies, small pure functions from a ``PlanRequest`` to a plan.

A policy named after an engine keeps that engine's faults and reports them in ``warnings``. It
raises ``PlanError`` for what the engine would refuse. To add a policy, write the function and
decorate it with ``@policy("name")`` in a module that is imported here.
"""

from cgbench.planning.policies import (
    fastdeploy,
    lightllm,
    lmdeploy,
    nano_vllm,
    own,
    sglang,
    tensorrt_llm,
    vllm,
    vllm_ascend,
)
from cgbench.planning.policies.registry import POLICIES, RELEASES, Policy, plan, policy

__all__ = [
    "POLICIES",
    "RELEASES",
    "Policy",
    "fastdeploy",
    "lightllm",
    "lmdeploy",
    "nano_vllm",
    "own",
    "plan",
    "policy",
    "sglang",
    "tensorrt_llm",
    "vllm",
    "vllm_ascend",
]
