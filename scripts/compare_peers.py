"""This tool's decode beside transformers', in one process on one device.

    python scripts/compare_peers.py preset:mimo-7b --context-len 1024 --output results/FOLDER/peers
    python scripts/compare_peers.py --peers iteration,dynamic,static --seconds 30

Same weights, same prompts, same batch, greedy, EOS ignored. Peers take rounds in turn; a row shows
the median of its rounds and a 95 % interval. One that cannot be measured here says why. Rows of the
first table are comparable in tokens a second; a step is one token for plain decoding and one
iteration for speculation. Rows of the second are one forward of k + 1 tokens a request.

Words after ``--`` are flags of ``cgbench run`` for this tool's rows:

    python scripts/compare_peers.py preset:mimo-7b -- --attention sdpa

``--output`` is written after every round. The same command goes on where an earlier one ended, to
``--rounds`` in all, and a row says of how many calls its rounds are; another ``--peers`` adds rows.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import cgbench.cli.run as run_command
from cgbench.cli.app import app
from cgbench.cli.prepare import capture_graphs, prepare, use_passive_threads
from peers import files, ours, theirs
from peers.rounds import Peer, Result, measure
from peers.tables import VERIFY, markdown

DECODING = (
    *("iteration", "phase", "eager", "iteration-k0", "phase-k0", "eager-k0"),
    *("dynamic", "static", "mtp", "batch"),
)

# Forwards of one round of a verify row.
VERIFY_CALLS = 20


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The script's own flags; ``flags`` holds those after ``--``."""
    own, flags = _split(sys.argv[1:] if words is None else words)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="default", help="as cgbench run takes it")
    parser.add_argument("--spec-tokens", type=int, default=3, help="drafts k of this tool's rows")
    parser.add_argument("--batch-size", type=int, default=1, help="requests that decode together")
    parser.add_argument("--context-len", type=int, default=256, help="tokens of every prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="decoded in one round")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="weights and KV")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and prompts")
    parser.add_argument(
        "--peers", default="all", help=f"all, or some of {', '.join((*DECODING, *VERIFY))}"
    )
    parser.add_argument("--seconds", type=float, default=60, help="for the rounds, warm-up apart")
    parser.add_argument("--rounds", type=int, default=12, help="most rounds a peer takes")
    parser.add_argument("--output", type=Path, help="write NAME.md and NAME.json")
    arguments = parser.parse_args(own)
    arguments.flags = flags
    known = {*DECODING, *VERIFY}
    names = known if arguments.peers == "all" else set(arguments.peers.split(","))
    if unknown := sorted(names - known):
        parser.error(f"--peers {','.join(unknown)}: unknown")
    if arguments.spec_tokens < 1:
        parser.error("--spec-tokens: at least 1; k = 0 has rows of its own")
    arguments.names = names
    return arguments


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def run_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``cgbench run`` would make of the flags, with nothing run."""
    words = [
        *("run", arguments.model, "--scopes", "eager,phase,iteration"),
        *("--spec-tokens", str(arguments.spec_tokens), "--batch-sizes", str(arguments.batch_size)),
        *("--context-len", str(arguments.context_len)),
        *("--max-new-tokens", str(arguments.new_tokens), "--role", "decode"),
        *("--max-num-batched-tokens", str(max(8192, arguments.context_len))),
        *("--capture-sizes", str(arguments.batch_size)),
        # Peers have the model's own router alone.
        *("--routing", "model"),
        *("--device", arguments.device, "--dtype", arguments.dtype, "--seed", str(arguments.seed)),
        *arguments.flags,
    ]
    with mock.patch.object(run_command, "execute", return_value=set()) as execute:
        app(words, standalone_mode=False)
    parsed: dict[str, Any] = execute.call_args.args[0]
    return parsed


class Setting:
    """One model for this tool, one for ``generate`` and one for ``generate_batch``, each made when
    a peer first asks for it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from cgbench.engine.prefill import prefill
        from cgbench.measure.setup import model_request
        from cgbench.models.loading_plan import plan_loading

        self.arguments = arguments
        parsed = run_arguments(arguments)
        self.setup = prepare(parsed)
        self.deployment, _ = capture_graphs(self.setup.deployment)
        options, workload = self.setup.options, self.setup.workload
        contexts = workload.contexts(arguments.batch_size, arguments.context_len)
        self.prompts = contexts
        budget = options.max_num_batched_tokens
        prefilled = prefill(self.deployment.spec, contexts, budget, arguments.seed)
        self.prepared = ours.Prepared(self.deployment, prefilled, options.reach)
        self._plan = plan_loading(model_request(parsed, self.deployment.device, with_head=False))
        # generate_batch takes its model's attention over while its manager lives.
        self.model = cache(self._load)
        self.batch_model = cache(self._load)

    def _load(self) -> Any:
        model = theirs.load_peer(self._plan)
        theirs.check_same_weights(model, self.deployment.spec.target.model)
        return model

    def makers(self) -> dict[str, Callable[[], Peer]]:
        """Every peer that was asked for, by its name, not yet made."""
        makers = {**self._ours(), **self._theirs()}
        return {name: makers[name] for name in makers if name in self.arguments.names}

    def _ours(self) -> dict[str, Callable[[], Peer]]:
        from cgbench.words import Scope

        k = self.arguments.spec_tokens
        made: dict[str, Callable[[], Peer]] = {
            f"{scope}{suffix}": partial(ours.Iterations, self.prepared, drafts, scope)
            for suffix, drafts in (("", k), ("-k0", 0))
            for scope in (Scope.ITERATION, Scope.PHASE, Scope.EAGER)
        }
        return {**made, "verify": lambda: ours.Verify(self.prepared, k, VERIFY_CALLS)}

    def _theirs(self) -> dict[str, Callable[[], Peer]]:
        prompts, new_tokens = self.prompts, self.arguments.new_tokens
        query_len = self.arguments.spec_tokens + 1

        def verify(compiled: bool) -> Peer:
            return theirs.StaticVerify(
                self.model(), prompts, query_len, VERIFY_CALLS, compiled=compiled
            )

        return {
            "dynamic": lambda: theirs.Generate(self.model(), prompts, new_tokens),
            "static": lambda: theirs.make_static(self.model(), prompts, new_tokens),
            "mtp": lambda: theirs.make_mtp(self.model(), prompts, new_tokens),
            "batch": lambda: theirs.ContinuousBatching(self.batch_model(), prompts, new_tokens),
            "verify-static": lambda: verify(False),
            "verify-compiled": lambda: verify(True),
        }

    def release(self) -> None:
        """Graphs go before the process does, this tool's and those of ``generate_batch``."""
        self.deployment.release()
        if self.batch_model.cache_info().currsize:
            self.batch_model().destroy_cached_continuous_batching_manager()

    def facts(self) -> dict[str, Any]:
        """What every row shares."""
        from cgbench.rundir.environment import environment

        deployment, options = self.deployment, self.setup.options
        return {
            "command": shlex.join(["python", "scripts/compare_peers.py", *sys.argv[1:]]),
            "model": deployment.model.label,
            "head": deployment.model.head_label,
            "dtype": str(deployment.spec.target.dtype).removeprefix("torch."),
            "attention": deployment.attention,
            "compile": options.compile_mode,
            "acceptance": options.acceptance,
            "spec_tokens": self.arguments.spec_tokens,
            "batch_size": self.arguments.batch_size,
            "context_len": self.arguments.context_len,
            "new_tokens": self.arguments.new_tokens,
            "notes": [*self.setup.notes],
            "environment": environment(),
        }


def main() -> None:
    arguments = parse_arguments()
    use_passive_threads()
    setting = Setting(arguments)
    output: Path | None = arguments.output
    try:
        facts = setting.facts()
        earlier = [] if output is None else files.read(output, facts)

        def keep(results: list[Result]) -> None:
            if output is not None:
                files.write(output, facts, results)

        limits = {"seconds": arguments.seconds, "max_rounds": arguments.rounds}
        results = measure(setting.makers(), earlier, **limits, keep=keep)
        print(markdown(facts, results), flush=True)
    finally:
        setting.release()


if __name__ == "__main__":
    main()
