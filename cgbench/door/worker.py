"""One process of ``--processes``: a job on stdin, and on stdout progress and why it failed."""

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

# What typer ends the command itself with: 128 and the signal's number, as shells have it.
INTERRUPTED = 130


def main() -> NoReturn:
    """Work for the process that started this one."""
    # What a library prints is no progress, so it goes to stderr, even where it is written in C.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.exit(work(sys.stdin, Relay(stdout)))


def work(stdin: IO[str], relay: Relay) -> int:
    """Measure into the job's directory. Cells that failed are in it, and no failure of this."""
    job = json.load(stdin)
    try:
        request = RunRequest.from_record(job["request"])
        measure(request, Path(job["path"]), relay, resume=job["resume"], ranks=ALONE)
    except KeyboardInterrupt:
        # The command that started this process is interrupted too, and says what there is to say.
        return INTERRUPTED
    except Exception as error:
        relay.fail(" ".join(one_line(error).split()))
        return exit_code_of(error)
    return ExitCode.OK


if __name__ == "__main__":
    main()
