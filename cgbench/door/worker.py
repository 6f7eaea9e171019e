"""Run one process of ``--processes``. A job comes on stdin. Progress and a failure's reason go to
stdout.
"""

import json
import os
import sys
from pathlib import Path
from typing import IO, NoReturn

from cgbench.door.relay import Relay
from cgbench.door.run import measure
from cgbench.errors import ExitCode, exit_code_of, one_line
from cgbench.parallel.ranks import ALONE
from cgbench.request.run_request import RunRequest

# Typer ends the command itself with this status: 128 and the signal's number, as shells have it.
INTERRUPTED = 130


def main() -> NoReturn:
    """Do the job on stdin and exit with its status."""
    # What a library prints is no progress, so it goes to stderr, even if it is written in C.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.exit(work(sys.stdin, Relay(stdout)))


def work(stdin: IO[str], relay: Relay) -> int:
    """Measure into the job's directory, and return the exit status. A cell that failed is in the
    directory, and is no failure of this process.
    """
    job = json.load(stdin)
    try:
        request = RunRequest.from_record(job["request"])
        measure(request, Path(job["path"]), relay, resume=job["resume"], ranks=ALONE)
    except KeyboardInterrupt:
        # The command that started this process is interrupted too, and reports it.
        return INTERRUPTED
    except Exception as error:
        relay.fail(" ".join(one_line(error).split()))
        return exit_code_of(error)
    return ExitCode.OK


if __name__ == "__main__":
    main()
