"""Layers traced for a compiler and run as traced: a kernel compiler's minutes say nothing more."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import functorch.compile  # noqa: F401 (forked processes have it before their first trace)
from torch._dynamo import guards
from torch.fx import GraphModule

from cgbench.compile import layers
from cgbench.compile.fusion import fuse


@contextmanager
def traced_layers() -> Iterator[list[GraphModule]]:
    """No layer is compiled meanwhile; the graphs that the compiler would be given, in order."""
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, _: object) -> GraphModule:
        graphs.append(fuse(graph))
        return graph

    with (
        mock.patch.object(layers, "compile_layer", keep),
        # It times the guards of each form for a log, with the processor's caches emptied: a tenth
        # of the time that tracing takes.
        mock.patch.object(guards, "profile_guard_manager", lambda *_: 0.0),
    ):
        yield graphs
