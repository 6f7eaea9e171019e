"""``cgbench.peers`` times this tool's decode beside transformers', in one process on one device."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from cgbench.door.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.inputs import check_known
from cgbench.progress import SILENT, Progress
from cgbench.request.peers_request import PeersRequest

if TYPE_CHECKING:
    from cgbench.engines.peer_rounds import Engine
    from cgbench.engines.peer_rows import PeerTable, Result, SharedFacts
    from cgbench.measure.setup import Setup


def peers(
    request: PeersRequest,
    output: "str | PathLike[str] | None" = None,
    *,
    command: str = "cgbench.peers(...)",
    progress: Progress = SILENT,
) -> "PeerTable":
    """Decode the same prompts with the same weights here and by transformers, in turns.

    ``output`` NAME keeps NAME.md and NAME.json after every round, and adds to the rounds that are
    there. ``command`` is what those files name as their origin. A peer that cannot be measured is a
    row with its reason, and raises nothing.

    Raise any of ``cgbench.errors``.
    """
    from cgbench.engines import peer_files
    from cgbench.engines.peer_rows import PEERS, PeerTable

    check_known("--peers", request.peers, PEERS)
    use_passive_threads()
    path = None if output is None else Path(output)
    found = None if path is None else peer_files.open_output(path)
    setup = prepare(request.run, progress)
    for note in setup.notes:
        progress.say(note)
    facts = _shared_facts(setup, request, command)
    earlier = [] if found is None else found.results_of(facts)
    with ExitStack() as held:
        deployment, _ = capture_graphs(setup.deployment, progress)
        held.callback(deployment.release)
        engines = _engines(replace(setup, deployment=deployment), request)
        for engine in engines:
            held.callback(engine.stop)
        return PeerTable(facts, _measure(engines, request, facts, earlier, path, progress))


def _engines(setup: "Setup", request: PeersRequest) -> "list[Engine]":
    """Return this tool and transformers, with the same weights and prompts."""
    from cgbench.engines.iterations import OwnEngine
    from cgbench.engines.transformers_decode import TransformersEngine
    from cgbench.models.loading_plan import loading_of, plan_loading

    run, k, deployment = request.run, request.spec_tokens, setup.deployment
    prompts = setup.workload.contexts(request.batch_size, run.workload.context_len)
    plan = plan_loading(
        loading_of(run.model, run.sharing, deployment.device, with_head=False, seed=run.seed)
    )
    reference, new_tokens = deployment.spec.target.model, run.workload.max_new_tokens
    return [
        OwnEngine(deployment, setup.options, prompts, k),
        TransformersEngine(plan, reference, prompts, spec_tokens=k, new_tokens=new_tokens),
    ]


def _shared_facts(setup: "Setup", request: PeersRequest, command: str) -> "SharedFacts":
    from cgbench.engines.peer_rows import SharedFacts
    from cgbench.rundir.environment import environment

    deployment = setup.deployment
    return SharedFacts(
        command=command,
        model=deployment.model.label,
        head=deployment.model.head_label,
        dtype=str(deployment.spec.target.dtype).removeprefix("torch."),
        attention=deployment.attention,
        compile=setup.options.compile,
        acceptance=str(setup.options.acceptance),
        spec_tokens=request.spec_tokens,
        batch_size=request.batch_size,
        context_len=request.workload.context_len,
        new_tokens=request.workload.max_new_tokens,
        notes=[*setup.notes],
        environment=environment(),
    )


def _measure(
    engines: "Sequence[Engine]",
    request: PeersRequest,
    facts: "SharedFacts",
    earlier: "list[Result]",
    output: Path | None,
    progress: Progress,
) -> "list[Result]":
    from cgbench.engines import peer_files
    from cgbench.engines.peer_rounds import measure
    from cgbench.tables.peers import markdown

    def keep(results: "list[Result]") -> None:
        if output is not None:
            peer_files.write(output, facts, results, markdown(facts, results))

    makers = {name: make for engine in engines for name, make in engine.peers().items()}
    return measure(
        {name: makers[name] for name in makers if name in (request.peers or makers)},
        earlier,
        seconds=request.seconds,
        max_rounds=request.rounds,
        keep=keep,
        progress=progress,
    )
