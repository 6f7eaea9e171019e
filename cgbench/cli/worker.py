"""One process of ``--processes``: a job on stdin, progress on stderr, on stdout why it failed."""

import io
import json
import sys
from pathlib import Path
from typing import NoReturn

from cgbench.cli.job import measure
from cgbench.errors import ExitCode, exit_code_of, one_line
from cgbench.request.run_request import RunRequest

# What typer ends the command itself with: 128 and the signal's number, as shells have it.
INTERRUPTED = 130


def main() -> NoReturn:
    """Measure into the job's directory. Cells that failed are in it, and no failure of this."""
    assert isinstance(sys.stdout, io.TextIOWrapper)
    # As it is read, whatever encoding the terminal has.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    job = json.load(sys.stdin)
    try:
        request = RunRequest.from_record(job["request"])
        measure(request, Path(job["path"]), resume=job["resume"])
    except KeyboardInterrupt:
        # The command that started this process is interrupted too, and says what there is to say.
        sys.exit(INTERRUPTED)
    except Exception as error:
        print(" ".join(one_line(error).split()))
        sys.exit(exit_code_of(error))
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
