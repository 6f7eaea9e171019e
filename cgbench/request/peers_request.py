"""Hold what a comparison of peers is asked to do, checked before anything is loaded.

No torch here.
"""

from dataclasses import dataclass, field, replace
from math import isfinite

from cgbench.errors import BadInputError
from cgbench.inputs import check_whole
from cgbench.planning import MAX_SPEC_TOKENS, check_batch_size
from cgbench.request.choices import Device, KvDtype, QuantMode, Role
from cgbench.request.keys import Recorded
from cgbench.request.parts import CaptureRequest, ModelRequest, TimingRequest, WorkloadRequest
from cgbench.request.run_request import RunRequest
from cgbench.words import Routing, Scope

MAX_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class PeersRequest(Recorded):
    """A ``PeersRequest`` states what ``cgbench peers`` compares: one k and one batch size.

    The comparison ends after ``seconds``, or earlier if each peer has ``rounds``. Empty ``peers``
    stand for all of them. This tool captures what is decoded and nothing else. Experts are chosen
    by the model's router, because other engines have no other. Raise ``BadInputError`` if a value
    cannot be used.
    """

    model: ModelRequest = field(default_factory=ModelRequest)
    capture: CaptureRequest = field(default_factory=CaptureRequest)
    workload: WorkloadRequest = field(default_factory=lambda: WorkloadRequest(batch_sizes=(1,)))
    device: Device = Device.AUTO
    seed: int = 0
    peers: tuple[str, ...] = ()
    seconds: float = 60.0
    rounds: int = 12

    def __post_init__(self) -> None:
        Recorded.__post_init__(self)
        check_whole("--spec-tokens", self.spec_tokens, 1, MAX_SPEC_TOKENS)
        check_batch_size("--batch-size", self.batch_size)
        check_whole("--context-len", self.workload.context_len, 1)
        check_whole("--max-new-tokens", self.workload.max_new_tokens, 2)
        check_whole("--rounds", self.rounds, 1, MAX_ROUNDS)
        if not (isfinite(self.seconds) and self.seconds >= 0):
            raise BadInputError(f"--seconds {self.seconds:g}: must be 0 or more")
        if self.model.kv_dtype != KvDtype.AUTO:
            raise BadInputError(
                f"--kv-dtype {self.model.kv_dtype}: peers keep keys and values in the model's "
                "dtype. Use auto"
            )
        if self.model.quant != QuantMode.AUTO:
            raise BadInputError(f"--quant {self.model.quant}: peers need plain weights. Use auto")
        object.__setattr__(self, "model", replace(self.model, routing=Routing.MODEL))
        object.__setattr__(self, "capture", self._own_capture())

    def _own_capture(self) -> CaptureRequest:
        return replace(
            self.capture,
            scopes=tuple(Scope),
            policy="explicit",
            capture_sizes=self.workload.batch_sizes,
            max_num_seqs=self.batch_size,
            role=Role.DECODE,
        )

    @property
    def spec_tokens(self) -> int:
        """Return k. Raise ``BadInputError`` if there is not exactly one."""
        return _only("--spec-tokens", self.capture.spec_tokens)

    @property
    def batch_size(self) -> int:
        """Return the batch size. Raise ``BadInputError`` if there is not exactly one."""
        return _only("--batch-size", self.workload.batch_sizes)

    @property
    def run(self) -> RunRequest:
        """Return the run request that makes this tool ready for the comparison.

        A round spans ``max_new_tokens``, whatever the block of a run would span.
        """
        timing = TimingRequest(iterations=1)
        return RunRequest(
            self.model, self.capture, self.workload, timing, device=self.device, seed=self.seed
        )


def _only(flag: str, values: tuple[int, ...]) -> int:
    if len(values) != 1:
        raise BadInputError(f"{flag} {','.join(map(str, values))}: must be one number")
    return values[0]
