"""This package holds what a command is asked: typed, checked and recorded. No torch here.

The requests and their parts are importable from here. Each value has the default of its flag.
"""

from cgbench.planning import PlanRequest
from cgbench.request.engines_request import EnginesRequest
from cgbench.request.parts import (
    CaptureRequest,
    HeadWiring,
    ModelRequest,
    SharingRequest,
    TimingRequest,
    WorkloadRequest,
)
from cgbench.request.peers_request import PeersRequest
from cgbench.request.run_request import AuditRequest, InspectRequest, RunRequest

__all__ = [
    "AuditRequest",
    "CaptureRequest",
    "EnginesRequest",
    "HeadWiring",
    "InspectRequest",
    "ModelRequest",
    "PeersRequest",
    "PlanRequest",
    "RunRequest",
    "SharingRequest",
    "TimingRequest",
    "WorkloadRequest",
]
