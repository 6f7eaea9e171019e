"""Python processes that start at once: forked from a server that has imported what runs import.

Whoever starts one sees a program that is called as Python is. Tests about the start of a process,
what it imports and what a terminal makes of it, start the real one.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.reduction import DupFd
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NoReturn

from tests.support.collector import all_stays
from tests.support.forkserver import fork_context

ROOT = Path(__file__).parents[2]

End = Callable[[], object]

SERVER = "from tests.support.quick_python import serve; serve()"

PROGRAM = """\
#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"3"], [0, 1, 2])
server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
server.shutdown(socket.SHUT_WR)
sys.exit(int(server.recv(16)))
"""


@cache
def quick_python(*preloaded: str, interpreted: bool = False) -> Path:
    """The program; ``-c CODE`` and ``-m MODULE`` are all that it takes. Its server has imported the
    modules ``preloaded``, and Triton's kernels are ``interpreted``."""
    folder = Path(mkdtemp(prefix="cgbench-python-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen()
    start = _interpreting_server if interpreted else _forked_server
    end = start(listener, preloaded)
    listener.close()
    atexit.register(_end, end, folder)
    program = folder / "python"
    program.write_text(PROGRAM.format(python=sys.executable, address=str(folder / "socket")))
    program.chmod(0o755)
    return program


def _interpreting_server(listener: socket.socket, preloaded: tuple[str, ...]) -> End:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(listener.fileno()), *preloaded],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
    )
    return server.communicate


def _forked_server(listener: socket.socket, preloaded: tuple[str, ...]) -> End:
    """One that the tests' fork server starts, so that imports are made once."""
    reading, writing = os.pipe()
    files = DupFd(listener.fileno()), DupFd(reading)
    server = fork_context().Process(target=_serve_forked, args=(*files, preloaded))
    server.start()
    os.close(reading)

    def end() -> None:
        os.close(writing)
        server.join()

    return end


def _serve_forked(listener: Any, input: Any, preloaded: tuple[str, ...]) -> None:
    _serve(listener.detach(), input.detach(), preloaded)


def _end(end: End, folder: Path) -> None:
    end()
    shutil.rmtree(folder)


def serve() -> None:
    """``sys.argv`` has the listening socket's number, and what to import."""
    _serve(int(sys.argv[1]), sys.stdin.fileno(), sys.argv[2:])


def _serve(listening: int, input: int, preloaded: Sequence[str]) -> None:
    """Each connection is a process to start. The server ends when its input does."""
    sys.path.insert(0, str(ROOT))
    with all_stays():
        for name in preloaded:
            importlib.import_module(name)
    listener = socket.socket(fileno=listening)
    while listener in select.select([listener, input], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            _attend(connection)
        connection.close()
        _forget_the_ended()


def _forget_the_ended() -> None:
    """Their time counts as the server's from then on."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _attend(connection: socket.socket) -> NoReturn:
    """Start the process that ``connection`` asks for, and tell how it ended."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile() as asked:
        words, folder, env = json.load(asked)
    process = os.fork()
    if process == 0:
        _become(words, folder, env, files)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    connection.sendall(str(code % 256).encode())
    os._exit(0)


def _become(words: list[str], folder: str, env: dict[str, str], files: list[int]) -> NoReturn:
    for number, file in enumerate(files):
        os.dup2(file, number)
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding=encoding) for number, mode in enumerate("rww")
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    code: object = 1
    try:
        _run(*words)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run(how: str, what: str, *words: str) -> None:
    sys.argv = [how, *words]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
