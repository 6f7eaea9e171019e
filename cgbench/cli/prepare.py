"""What ``run`` and ``audit`` do before anything is measured: load, plan, make room, capture."""

import os
from typing import TYPE_CHECKING, Any

from cgbench.cli.console import progress, say_when_piped, working

if TYPE_CHECKING:
    from cgbench.engine.deployment import Deployment, DummyRun
    from cgbench.measure.setup import Setup


def use_passive_threads() -> None:
    """Spinning threads make small operators many times slower wherever anything else wants the
    cores. Before torch is imported, for OpenMP reads it when torch loads it."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def prepare(arguments: dict[str, Any]) -> "Setup":
    """The deployment that the arguments ask for, nothing captured yet, and what goes with it.

    ``max_num_seqs`` of None is the largest batch size. Raises any of ``cgbench.errors``.
    """
    from cgbench.engine.attention import resolve_backend
    from cgbench.measure import setup
    from cgbench.measure.rank_facts import link_notes
    from cgbench.models.loading_plan import check_model_ref

    device = setup.choose_device(arguments["device"])
    attention = resolve_backend(arguments["attention"], device)
    options, notes = setup.make_options(arguments, device)
    check_model_ref(arguments["model"])
    texts = setup.read_texts(arguments)
    with working(f"load {arguments['model']}"):
        model = setup.load(arguments, options, device)
    notes += link_notes()
    workload = setup.make_workload(arguments, options, model, texts)
    deployment = setup.make_deployment(options, model, workload, attention)
    if options.compile_mode != "off":
        deployment = compile_layers(deployment)
    return setup.Setup(deployment, options, workload, (*notes,))


def compile_layers(deployment: "Deployment") -> "Deployment":
    """Compile what decode steps run, and say what that took.

    Raises ``UnsupportedModelError`` where it cannot be.
    """
    from cgbench.compile.decode import compiled

    with working("compile the decode layers"):
        deployment = compiled(deployment)
    say_when_piped(f"compiled the decode layers in {deployment.compile_s:.1f} s")
    return deployment


def capture_graphs(deployment: "Deployment") -> "tuple[Deployment, DummyRun | None]":
    """The deployment with every graph captured, after its largest step; None where there is
    nothing to capture. Raises ``CaptureError`` or ``OutOfMemoryError``."""
    from cgbench.engine.deployment import capture, dummy_run, num_graph_buckets

    total = num_graph_buckets(deployment)
    if not total:
        return deployment, None
    with working("dummy run of the largest step"):
        largest = dummy_run(deployment)
    with progress() as bar:
        task = bar.add_task("capture graphs", total=total)
        deployment = capture(deployment, lambda: bar.advance(task))
    num_graphs = sum(len(graphs.costs) for graphs in deployment.graph_sets.values())
    say_when_piped(f"captured {num_graphs} graphs")
    return deployment, largest
