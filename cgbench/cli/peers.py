"""``cgbench peers``: this tool's decode beside transformers', in one process on one device."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress as Bars

from cgbench.cli.bench_flags import (
    Attention,
    Chat,
    CompileMode,
    Debug,
    DeviceName,
    DtypeName,
    Model,
    NumPrompts,
    Prompts,
)
from cgbench.cli.console import progress, say, say_when_piped
from cgbench.cli.head_flags import (
    ChainNorm,
    HeadConcat,
    HeadFamilyName,
    HeadFirstEmbed,
    HeadHidden,
    HeadNormForm,
    HeadOutNorm,
    HeadRef,
)
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from cgbench.cli.values import asked, check_known
from cgbench.errors import ExitCode
from cgbench.planning.plan_request import DEFAULT_MAX_BATCHED_TOKENS
from cgbench.request.choices import ChatTemplate, Compile, Device, Dtype
from cgbench.request.peers_request import PeersRequest

if TYPE_CHECKING:
    from cgbench.engines.peer_rounds import Engine
    from cgbench.engines.peer_rows import Result, SharedFacts
    from cgbench.measure.setup import Setup


def peers(
    model: Model = "default",
    peers: Annotated[
        str | None,
        typer.Option(
            "--peers",
            help="Only these, of iteration, phase, eager (with -k0 appended: no drafts), dynamic, "
            "static, mtp, batch, verify, verify-static and verify-compiled. Default: all.",
        ),
    ] = None,
    spec_tokens: Annotated[int, typer.Option(help="Draft tokens k of this tool's rows.")] = 3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "--max-num-seqs", help="Requests that decode together.")
    ] = 1,
    context_len: Annotated[int, typer.Option(help="Tokens of every prompt.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a request decodes in a round.")] = 64,
    head: HeadRef = None,
    head_family: HeadFamilyName = None,
    head_concat: HeadConcat = None,
    head_hidden_in: HeadHidden = None,
    head_chain: ChainNorm = None,
    head_out_norm: HeadOutNorm = None,
    head_norm_form: HeadNormForm = None,
    head_first_embed: HeadFirstEmbed = None,
    prompts: Prompts = None,
    num_prompts: NumPrompts = None,
    chat_template: Chat = ChatTemplate.AUTO,
    acceptance: Annotated[
        str | None,
        typer.Option(help="Of this tool's rows with drafts, as `cgbench run` takes it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random weights and random prompts.")] = 0,
    device: DeviceName = Device.AUTO,
    dtype: DtypeName = Dtype.AUTO,
    attention: Attention = "auto",
    compile: CompileMode = Compile.OFF,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of one prefill forward. Default: 8192, or --context-len."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="For the rounds, warm-up not counted.")] = 60,
    rounds: Annotated[int, typer.Option(help="Most rounds a peer takes.")] = 12,
    output: Annotated[
        Path | None,
        typer.Option(help="Write NAME.md and NAME.json after every round; go on with those there."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the rounds and their medians as JSON.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Decode the same prompts with the same weights here and by transformers, in turns.

    Exit code 0: measured; 2: bad input; 3: a peer that --peers names cannot be measured here, or
    none can.
    """
    parameters = locals()
    given = {
        "spec_tokens": (spec_tokens,),
        "batch_sizes": (batch_size,),
        "max_num_batched_tokens": _token_budget(max_num_batched_tokens, context_len),
    }
    request = asked(PeersRequest, parameters | given)
    check_known("--peers", request.peers, _known_peers())
    use_passive_threads()
    facts, results = execute(request, output)
    _print(facts, results, as_json=as_json)
    raise typer.Exit(exit_code(request, results))


def _known_peers() -> tuple[str, ...]:
    from cgbench.engines.peer_rows import PEERS

    return PEERS


def _token_budget(stated: int | None, context_len: int) -> int:
    """A whole prompt goes through one forward, as in the other engines."""
    return max(DEFAULT_MAX_BATCHED_TOKENS, context_len) if stated is None else stated


def execute(request: PeersRequest, output: Path | None) -> "tuple[SharedFacts, list[Result]]":
    """The main job: the rows of all peers asked for, and of those that ``output`` had already."""
    from cgbench.engines import peer_files

    found = None if output is None else peer_files.open_output(output)
    setup = prepare(request.run)
    for note in setup.notes:
        say(note)
    facts = _shared_facts(setup, request)
    earlier = [] if found is None else found.results_of(facts)
    with ExitStack() as held:
        deployment, _ = capture_graphs(setup.deployment)
        held.callback(deployment.release)
        engines = _engines(replace(setup, deployment=deployment), request)
        for engine in engines:
            held.callback(engine.stop)
        return facts, _measure(engines, request, facts, earlier, output)


def _engines(setup: "Setup", request: PeersRequest) -> "list[Engine]":
    """This tool and transformers, with the same weights and prompts."""
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


def _shared_facts(setup: "Setup", request: PeersRequest) -> "SharedFacts":
    from cgbench.engines.peer_rows import SharedFacts
    from cgbench.rundir.environment import environment

    deployment = setup.deployment
    return SharedFacts(
        command=shlex.join(["cgbench", *sys.argv[1:]]),
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
) -> "list[Result]":
    from cgbench.engines import peer_files
    from cgbench.engines.peer_rounds import measure
    from cgbench.tables.peers import markdown

    def keep(results: "list[Result]") -> None:
        if output is not None:
            peer_files.write(output, facts, results, markdown(facts, results))

    makers = {name: make for engine in engines for name, make in engine.peers().items()}
    chosen = {name: makers[name] for name in makers if name in (request.peers or makers)}
    with _shown(len(chosen), request.rounds) as shown, _saying_what_is_kept(output):
        return measure(
            chosen,
            earlier,
            seconds=request.seconds,
            max_rounds=request.rounds,
            keep=keep,
            progress=shown,
        )


@contextmanager
def _saying_what_is_kept(output: Path | None) -> Iterator[None]:
    from cgbench.engines.peer_files import json_file

    try:
        yield
    except KeyboardInterrupt:
        if output is not None and (file := json_file(output)).exists():
            say(f"interrupted; rounds taken are in {file}; the same command goes on")
        raise


class _Shown:
    """A bar on a terminal, lines where piped; what is not measured is a line on both."""

    def __init__(self, bars: Bars, num_peers: int, max_rounds: int) -> None:
        self._bars = bars
        self._max_rounds = max_rounds
        self._warming = bars.add_task("warm up", total=num_peers)
        self._rounds = bars.add_task("rounds", total=max_rounds, visible=False)

    def warming(self, name: str) -> None:
        self._bars.update(self._warming, description=f"warm up {name}")

    def ready(self, name: str, seconds: float) -> None:
        self._bars.advance(self._warming)
        say_when_piped(f"{name}: ready in {seconds:.1f} s")

    def failed(self, name: str, reason: str) -> None:
        self._bars.advance(self._warming)
        say(f"{name}: not measured: {reason}")

    def round_taken(self, number: int) -> None:
        self._bars.update(self._warming, visible=False)
        self._bars.update(self._rounds, completed=number, visible=True)
        say_when_piped(f"round {number} of at most {self._max_rounds}")


@contextmanager
def _shown(num_peers: int, max_rounds: int) -> Iterator[_Shown]:
    with progress() as bars:
        yield _Shown(bars, num_peers, max_rounds)


def _print(facts: "SharedFacts", results: "list[Result]", *, as_json: bool) -> None:
    from cgbench.tables.peers import markdown, row_facts

    if as_json:
        rows = [row_facts(result) for result in results]
        typer.echo(json.dumps({**asdict(facts), "peers": rows}, indent=2))
    else:
        typer.echo(markdown(facts, results), nl=False)


def exit_code(request: PeersRequest, results: "list[Result]") -> ExitCode:
    """Of peers that are named each must be measured, of all peers one."""
    measured = {row.name for row in results if row.rounds and row.reason is None}
    is_good = measured.issuperset(request.peers) if request.peers else bool(measured)
    return ExitCode.OK if is_good else ExitCode.CANNOT
