"""Define the one exception tree, and the exit code that each exception leads to.

Every message names the flag or the file that mends the problem. Exit codes are the command line's
contract (see ``ExitCode``). An exception carries its own, so the command line needs no table.
"""

from collections.abc import Collection
from enum import IntEnum


class ExitCode(IntEnum):
    """An exit code is the exit status of a command, with the same meaning in every command.

    ``FAULT`` and ``READER_GONE`` are no answers. ``FAULT`` is a mistake in cgbench itself: 70, as
    in ``sysexits.h``. ``READER_GONE`` is a reader that closed the pipe: 141, as a shell reports
    SIGPIPE.
    """

    OK = 0
    ANSWER_IS_NO = 1
    BAD_INPUT = 2
    CANNOT = 3
    INCONCLUSIVE = 4
    FAULT = 70
    READER_GONE = 141


# Of several answers the first in this order counts.
_PRECEDENCE = (ExitCode.ANSWER_IS_NO, ExitCode.CANNOT, ExitCode.INCONCLUSIVE)


def foremost(codes: Collection[ExitCode]) -> ExitCode:
    """Return the exit code of a command that found several answers, in the order 1 > 3 > 4 > 0."""
    return next((code for code in _PRECEDENCE if code in codes), ExitCode.OK)


class CgbenchError(Exception):
    """This error is the base of all errors that a user can mend.

    The message is one line and is shown as it is.
    """

    exit_code: ExitCode = ExitCode.BAD_INPUT


class BadInputError(CgbenchError):
    """This error means that a flag's value or a file cannot be used as given."""


class PlanError(BadInputError):
    """This error means that an engine refuses the capture sizes, or that they do not fit the
    request."""


class RefusedPlanError(PlanError):
    """This error means that the engine of a policy refuses the request.

    ``reason`` leaves out the policy's name.
    """

    def __init__(self, policy: str, reason: str) -> None:
        super().__init__(f"{policy} refuses {reason}")
        self.reason = reason


class ModelError(BadInputError):
    """This error means that a model reference or a checkpoint cannot be loaded."""


class MissingHeadError(ModelError):
    """This error means that a checkpoint holds no draft head that can be used.

    Tensors of the head are missing, or do not fit the target.
    """


class RunDirectoryError(BadInputError):
    """This error means that a run directory exists already, is damaged, or does not fit the
    arguments."""


class CannotError(CgbenchError):
    """This error means that the input is sound, but this machine or this build cannot serve it."""

    exit_code = ExitCode.CANNOT


class UnsupportedModelError(CannotError):
    """This error means that the model cannot be run as asked, or that its forward cannot be
    captured."""


class DeviceError(CannotError):
    """This error means that the device asked for is not there, or is not the kind that a flag
    needs."""


class OutOfMemoryError(CannotError):
    """This error means that device memory ran out.

    The message states where it ran out and what to lower.
    """


class OutputError(CannotError):
    """This error means that a folder or a file of results cannot be written, or not any more."""


class CaptureError(CannotError):
    """This error means that a graph could not be captured, or is not the graph that the plan asked
    for."""


class RanksError(CannotError):
    """This error means that a rank of a tensor parallel run does not come along."""


class RankLostError(RanksError):
    """This error means that a rank ends because another rank is gone."""


class ProcessError(CannotError):
    """This error means that a process of this run ended badly.

    ``exit_code`` is the code with which the process ended.
    """

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RankFailedError(ProcessError):
    """This error means that a rank failed by itself. The message is the rank's own."""


# Errors of the machine or of a library for it: no disk, no memory, no package, a device's error.
_OF_THE_MACHINE = (OSError, MemoryError, ImportError, RuntimeError)
_DEVICE_LIBRARIES = frozenset({"torch", "triton"})
# RuntimeErrors by descent that no machine raises.
_MISTAKES = (RecursionError, NotImplementedError)


def is_fault(error: BaseException) -> bool:
    """Return whether an exception is a mistake in cgbench.

    It is none if it is of this tree, or comes from the machine or from a device's library.
    """
    if isinstance(error, _MISTAKES):
        return True
    library = type(error).__module__.partition(".")[0]
    return not isinstance(error, (CgbenchError, *_OF_THE_MACHINE)) and (
        library not in _DEVICE_LIBRARIES
    )


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code that an exception leads to."""
    if isinstance(error, CgbenchError):
        return error.exit_code
    return ExitCode.FAULT if is_fault(error) else ExitCode.CANNOT


def one_line(error: Exception) -> str:
    """Return the one line in which an error is shown.

    An error of this tree shows its message. Any other shows its type, the first line of its
    message, and what to do next.
    """
    if isinstance(error, CgbenchError):
        return str(error)
    lines = str(error).strip().splitlines() or ["(no message)"]
    line = f"{type(error).__name__}: {lines[0]}"
    if is_fault(error):
        return f"a fault of cgbench: {line} (please report it with what --debug prints)"
    return f"{line} (--debug shows the traceback)"


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has no message."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
