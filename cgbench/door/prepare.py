"""Do what ``run``, ``audit`` and ``peers`` need before anything is measured: load, plan and
capture.
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cgbench.parallel.launch import ranks_asked
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.progress import Progress
from cgbench.request.choices import Compile
from cgbench.request.run_request import AuditRequest, DecodeRequest, RunRequest

if TYPE_CHECKING:
    from cgbench.engine.deployment import Deployment, DummyRun
    from cgbench.measure.setup import Setup

_R = TypeVar("_R", RunRequest, AuditRequest)


def use_passive_threads() -> None:
    """Make threads that wait sleep, unless the environment states otherwise.

    Spinning threads make small operators many times slower wherever anything else wants the cores.
    Call this before torch is imported, because OpenMP reads the setting when torch loads it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def with_ranks(request: _R) -> _R:
    """Return ``request`` with the ranks that torchrun has started, if it states none.

    Raise ``BadInputError`` if it states others.
    """
    sharing = request.sharing
    return replace(request, sharing=replace(sharing, tp=ranks_asked(sharing.tp)))


def prepare(request: DecodeRequest, progress: Progress, ranks: Ranks = ALONE) -> "Setup":
    """Return the deployment that is asked for, and what goes with it. Nothing is captured yet.

    ``ranks`` share the model. Raise any of ``cgbench.errors``.
    """
    from cgbench.engine.backends import check_kv_dtype, resolve_backend
    from cgbench.measure import setup
    from cgbench.measure.rank_facts import link_notes
    from cgbench.models.loading_plan import check_model_ref

    device = setup.choose_device(request.device)
    attention = resolve_backend(request.capture.attention, device)
    check_kv_dtype(request.model.kv_dtype, attention, device)
    options, notes = setup.make_options(request, device, ranks)
    check_model_ref(request.model.ref)
    texts = setup.read_texts(request)
    with progress.working(f"load {request.model.ref}"):
        model = setup.load(request, options, device, ranks, attention)
    attention = attention.of(model)
    notes += link_notes(ranks)
    workload = setup.make_workload(request.workload, options, model, texts)
    deployment = setup.make_deployment(options, model, workload, attention)
    if options.compile != Compile.OFF:
        deployment = compile_layers(deployment, progress)
    return setup.Setup(deployment, options, workload, (*notes,))


def compile_layers(deployment: "Deployment", progress: Progress) -> "Deployment":
    """Compile what decode steps run, and report what that took.

    Raise ``UnsupportedModelError`` if it cannot be compiled.
    """
    from cgbench.compile.decode import compiled

    with progress.working("compile the decode layers"):
        deployment = compiled(deployment)
    progress.log(f"compiled the decode layers in {deployment.compile_s:.1f} s")
    return deployment


def capture_graphs(
    deployment: "Deployment", progress: Progress
) -> "tuple[Deployment, DummyRun | None]":
    """Run the largest step once, capture every graph, and return the deployment and that step.

    The step is None if there is nothing to capture. Raise ``CaptureError`` or ``OutOfMemoryError``.
    """
    from cgbench.engine.deployment import capture, dummy_run, num_graph_buckets

    total = num_graph_buckets(deployment)
    if not total:
        return deployment, None
    with progress.working("dummy run of the largest step"):
        largest = dummy_run(deployment)
    with progress.bar("capture graphs", total) as bar:
        deployment = capture(deployment, bar.advance)
    num_graphs = sum(len(graphs.costs) for graphs in deployment.graph_sets.values())
    progress.log(f"captured {num_graphs} graphs")
    return deployment, largest
