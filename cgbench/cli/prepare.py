"""What ``run`` and ``audit`` do before anything is measured: load, plan, make room, capture."""

import os
from typing import TYPE_CHECKING, Any

from cgbench.cli.console import progress, say_when_piped, working
from cgbench.request.choices import Compile
from cgbench.request.run_request import DecodeRequest

if TYPE_CHECKING:
    from cgbench.measure.bench import Bench


def use_passive_threads() -> None:
    """Spinning threads make small operators many times slower wherever anything else wants the
    cores. Before torch is imported, for OpenMP reads it when torch loads it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def prepare(request: DecodeRequest) -> tuple["Bench", list[str]]:
    """The bench that is asked for, nothing captured yet, and what to tell the user.

    Raises any of ``cgbench.errors``.
    """
    from cgbench.engine.attention import resolve_backend
    from cgbench.measure import setup
    from cgbench.measure.rank_facts import link_notes
    from cgbench.models.loading_plan import check_model_ref

    device = setup.choose_device(request.device)
    attention = resolve_backend(request.capture.attention, device)
    options, notes = setup.make_options(request, device)
    check_model_ref(request.model.ref)
    texts = setup.read_texts(request)
    with working(f"load {request.model.ref}"):
        model = setup.load(request, options, device)
    notes += link_notes()
    workload = setup.make_workload(request.workload, options, model, texts)
    bench = setup.make_bench(options, model, workload, attention)
    if options.compile != Compile.OFF:
        compile_layers(bench)
    return bench, notes


def compile_layers(bench: "Bench") -> None:
    """Compile what decode steps run, and note what that took.

    Raises ``UnsupportedModelError`` where it cannot be.
    """
    from cgbench.measure.bench import compile_all

    with working("compile the decode layers"):
        bench.compile_s = compile_all(bench)
    say_when_piped(f"compiled the decode layers in {bench.compile_s:.1f} s")


def capture_graphs(bench: "Bench") -> dict[str, Any] | None:
    """The deployment's largest step, then every graph; what ``dummy_run`` returns, or None where
    there is nothing to capture. Raises ``CaptureError`` or ``OutOfMemoryError``."""
    from cgbench.measure.bench import capture_all, dummy_run, num_graph_buckets

    total = num_graph_buckets(bench)
    if not total:
        return None
    with working("dummy run of the largest step"):
        facts = dummy_run(bench)
    with progress() as bar:
        task = bar.add_task("capture graphs", total=total)
        capture_all(bench, lambda: bar.advance(task))
    num_graphs = sum(len(graphs.costs) for graphs in bench.graph_sets.values())
    say_when_piped(f"captured {num_graphs} graphs")
    return facts
