"""The one exception tree. Every message names the flag or the file that mends it.

Exit codes are the command line's contract (see ``ExitCode``). An exception carries the one that it
leads to, so the command line needs no table of its own.
"""

from collections.abc import Collection
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means, everywhere.

    ``FAULT`` and ``READER_GONE`` are no answers. The first is a mistake in cgbench itself, the
    second a reader that closed the pipe: 70 as in ``sysexits.h``, 141 as a shell reports SIGPIPE.
    """

    OK = 0
    ANSWER_IS_NO = 1
    BAD_INPUT = 2
    CANNOT = 3
    INCONCLUSIVE = 4
    FAULT = 70
    READER_GONE = 141


# Of several answers the first of these is the one that counts.
_PRECEDENCE = (ExitCode.ANSWER_IS_NO, ExitCode.CANNOT, ExitCode.INCONCLUSIVE)


def foremost(codes: Collection[ExitCode]) -> ExitCode:
    """The code of a command that found several: 1 > 3 > 4 > 0."""
    return next((code for code in _PRECEDENCE if code in codes), ExitCode.OK)


class CgbenchError(Exception):
    """A user can mend this. The message is one line and is shown as it is."""

    exit_code: ExitCode = ExitCode.BAD_INPUT


class BadInputError(CgbenchError):
    """A flag's value or a file cannot be used as given."""


class PlanError(BadInputError):
    """An engine would refuse the capture sizes, or they do not fit the request."""


class RefusedPlanError(PlanError):
    """A policy's engine refuses the request. ``reason`` leaves out the policy's name."""

    def __init__(self, policy: str, reason: str) -> None:
        super().__init__(f"{policy} refuses {reason}")
        self.reason = reason


class ModelError(BadInputError):
    """A model reference or a checkpoint cannot be loaded."""


class MissingHeadError(ModelError):
    """Tensors of the draft head are missing in the checkpoint."""


class RunDirectoryError(BadInputError):
    """A run directory exists already, is damaged, or does not fit the arguments."""


class CannotError(CgbenchError):
    """The input is sound, and this machine or this build cannot serve it."""

    exit_code = ExitCode.CANNOT


class UnsupportedModelError(CannotError):
    """The model's forward cannot go through the engine's attention."""


class DeviceError(CannotError):
    """The device asked for is not there."""


class OutOfMemoryError(CannotError):
    """Device memory ran out; the message says where and what to lower."""


class EndpointError(CannotError):
    """A server cannot be reached, or does not answer a request."""


class OutputError(CannotError):
    """A folder was begun and cannot be written any more."""


class CaptureError(CannotError):
    """A graph could not be captured, or is not the graph that the plan asked for."""


class RanksError(CannotError):
    """A rank of a tensor parallel run does not come along."""


class RankLostError(RanksError):
    """A rank ends because another one is gone."""


class ProcessError(CannotError):
    """A process of this run ended badly. The exit code is the one that it gave."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RankFailedError(ProcessError):
    """A rank failed by itself. The message is its own."""


# What the machine or a library for it ends with: no disk, no memory, no package, a device's error.
_OF_THE_MACHINE = (OSError, MemoryError, ImportError, RuntimeError)
_DEVICE_LIBRARIES = frozenset({"torch", "triton"})
# RuntimeErrors by descent that no machine raises.
_MISTAKES = (RecursionError, NotImplementedError)


def is_fault(error: BaseException) -> bool:
    """Whether an exception is a mistake in cgbench: neither ours to raise nor the machine's."""
    if isinstance(error, _MISTAKES):
        return True
    library = type(error).__module__.partition(".")[0]
    return not isinstance(error, (CgbenchError, *_OF_THE_MACHINE)) and (
        library not in _DEVICE_LIBRARIES
    )


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that an exception leads to."""
    if isinstance(error, CgbenchError):
        return error.exit_code
    return ExitCode.FAULT if is_fault(error) else ExitCode.CANNOT


def one_line(error: Exception) -> str:
    """An error as it is shown: ours say it all, of any other the type and its first line."""
    if isinstance(error, CgbenchError):
        return str(error)
    lines = str(error).strip().splitlines() or ["(no message)"]
    line = f"{type(error).__name__}: {lines[0]}"
    if is_fault(error):
        return f"a fault of cgbench: {line} (please report it with what --debug prints)"
    return f"{line} (--debug shows the traceback)"


def first_line(error: Exception) -> str:
    """An exception's message on one line, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
