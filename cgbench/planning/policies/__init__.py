"""Capture policies: each is one small pure function from a ``PlanRequest`` to a ``CapturePlan``.

A policy named after an engine keeps that engine's faults and says so in ``warnings``; what the
engine would refuse raises ``PlanError``. To add one, write the function and decorate it with
``@policy("name")`` in a module that is imported here.
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
