"""Run one engine's driver as a script: ``python engine_child.py DRIVER REPLY_FD``.

Calls arrive on standard input, and answers go to the file descriptor REPLY_FD. Standard output and
error are the engine's own, and lead to its log. DRIVER is ``module:class``.
"""

import gc
import json
import os
import sys
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from cgbench.engines.drivers.messages import JsonObject


def make_importable(package: Path) -> None:
    """Make ``cgbench`` importable from its folder alone.

    The folder that holds it may be another environment's site-packages. On the path, that would
    hide the packages of this one.
    """
    if "cgbench" in sys.modules:
        return
    spec = spec_from_file_location(
        "cgbench", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["cgbench"] = module
    spec.loader.exec_module(module)


def main(driver_name: str, reply_fd: int) -> None:
    """Answer calls until ``stop``, or until nobody can call any more."""
    from cgbench.engines.drivers import messages

    module, _, name = driver_name.partition(":")
    driver = None
    os.set_inheritable(reply_fd, False)
    with own_stdin() as calls, os.fdopen(reply_fd, "w", encoding="utf-8") as replies:
        for line in calls:
            called = json.loads(line)
            try:
                if driver is None:
                    driver = getattr(import_module(module), name)()
                answer = answer_of(driver, called["call"], called["with"])
            except BaseException as error:
                traceback.print_exc()
                replies.write(messages.failed_line(error))
                replies.flush()
                break
            replies.write(messages.done_line(answer))
            replies.flush()
            if called["call"] == messages.STOP:
                break


def own_stdin() -> TextIO:
    """Return standard input, and leave an empty one to the engine and to what it starts."""
    calls = os.fdopen(os.dup(0), encoding="utf-8")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return calls


def answer_of(driver: Any, name: str, asked: "JsonObject") -> Any:
    """Return the answer of one call. Raise whatever the engine raises."""
    from cgbench.engines.drivers import messages

    if name == messages.START:
        started = driver.start(messages.read_as(messages.Start, asked))
        # What the start has made stays, so no collection goes through it within a block.
        gc.collect()
        gc.freeze()
        return started
    if name == messages.PREFILL:
        return driver.prefill(messages.read_as(messages.Prefill, asked))
    if name == messages.STEPS:
        return driver.steps(**asked)
    if name == messages.PROFILE:
        return driver.profile(**asked)
    if name == messages.TOKENS:
        return {"tokens": driver.tokens()}
    if name == messages.STOP:
        driver.stop()
        return {}
    raise ValueError(f"no call {name}")


if __name__ == "__main__":
    # The script's own folder comes first on the path. Nothing there may stand for a package.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [folder for folder in sys.path if folder != here]
    make_importable(Path(__file__).resolve().parents[2])
    main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Engines leave threads and communicators behind, whose ends hang or print.
    os._exit(0)
