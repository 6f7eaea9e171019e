"""Hold what a command is asked to do, parsed once and recorded once. No torch here."""

from dataclasses import dataclass, field, replace

from cgbench.request.choices import Device, Role
from cgbench.request.keys import Recorded, Setting
from cgbench.request.parts import (
    CaptureRequest,
    ModelRequest,
    SharingRequest,
    TimingRequest,
    WorkloadRequest,
)


@dataclass(frozen=True, slots=True)
class RunRequest(Recorded):
    """A ``RunRequest`` states what ``cgbench run`` measures, but not where its results go."""

    model: ModelRequest = field(default_factory=ModelRequest)
    capture: CaptureRequest = field(default_factory=CaptureRequest)
    workload: WorkloadRequest = field(default_factory=WorkloadRequest)
    timing: TimingRequest = field(default_factory=TimingRequest)
    sharing: SharingRequest = field(default_factory=SharingRequest)
    device: Device = Device.AUTO
    seed: int = 0
    save_tokens: bool = False


@dataclass(frozen=True, slots=True)
class AuditRequest(Recorded):
    """An ``AuditRequest`` states what ``cgbench audit`` judges.

    Empty ``checks`` stand for all of them. Answers are judged, so nothing is left to chance.
    Acceptance is greedy, text ends at its EOS, and the deployment decodes alone. One batch size is
    decoded, ``capture.max_num_seqs``.
    """

    model: ModelRequest = field(default_factory=ModelRequest)
    capture: CaptureRequest = field(default_factory=CaptureRequest)
    workload: WorkloadRequest = field(
        default_factory=lambda: WorkloadRequest(max_new_tokens=16, context_len=64)
    )
    sharing: SharingRequest = field(default_factory=SharingRequest)
    device: Device = Device.AUTO
    seed: int = 0
    checks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Recorded.__post_init__(self)
        workload = replace(self.workload, acceptance="greedy", ignore_eos=False)
        object.__setattr__(self, "capture", replace(self.capture, role=Role.DECODE))
        object.__setattr__(self, "workload", workload)

    @property
    def timing(self) -> TimingRequest:
        """Return the default timing.

        Nothing is timed, but graphs need the room that a run's have.
        """
        return TimingRequest()

    def to_record(self) -> dict[str, Setting]:
        record = Recorded.to_record(self)
        return {name: value for name, value in record.items() if name not in DECIDED_BY_AUDIT}


DECIDED_BY_AUDIT = frozenset({"role", "acceptance", "ignore_eos", "batch_sizes"})
"""An audit has no flags for these values."""

DecodeRequest = RunRequest | AuditRequest
"""These requests load a model and decode with it."""


@dataclass(frozen=True, slots=True)
class InspectRequest(Recorded):
    """An ``InspectRequest`` states which model ``cgbench inspect`` looks at, with its head.

    ``sharing`` is how GPUs would share it.
    """

    model: ModelRequest = field(default_factory=ModelRequest)
    device: Device = Device.AUTO
    sharing: SharingRequest = field(default_factory=SharingRequest)
