"""Plan, capture and time CUDA graphs for speculative decoding with MTP draft heads.

``plan``, ``run``, ``audit``, ``inspect``, ``peers`` and ``compare`` do what the commands of these
names do, ``audit_endpoint`` what ``audit --endpoint`` does, and ``peer_engines`` what ``peers
--engine`` does. They return typed results, raise
``cgbench.errors`` and print nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgbench.door.audit import audit
    from cgbench.door.audit_endpoint import audit_endpoint
    from cgbench.door.inspect import inspect
    from cgbench.door.peer_engines import peer_engines
    from cgbench.door.peers import peers
    from cgbench.door.run import run
    from cgbench.gate.comparison import compare
    from cgbench.planning import plan

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "audit",
    "audit_endpoint",
    "compare",
    "inspect",
    "peer_engines",
    "peers",
    "plan",
    "run",
]

_ROOMS = {
    "plan": "cgbench.planning",
    "run": "cgbench.door.run",
    "audit": "cgbench.door.audit",
    "audit_endpoint": "cgbench.door.audit_endpoint",
    "inspect": "cgbench.door.inspect",
    "peer_engines": "cgbench.door.peer_engines",
    "peers": "cgbench.door.peers",
    "compare": "cgbench.gate.comparison",
}


def __getattr__(name: str) -> object:
    """Import a function where it is first asked for, so that ``import cgbench`` stays quick."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
