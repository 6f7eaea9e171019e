"""Does the gate cry wolf, and does it see a slow-down of 3 %? True re-runs, and a planted kernel.

    python scripts/trials/check_gate.py record --output results/h200/gate/runs \
        --runs 20 --seconds 280
    python scripts/trials/check_gate.py analyse results/h200/gate/runs --output results/h200/gate

``record`` needs the device. It makes plain and planted runs in turn until there are enough or the
time is over, and goes on where an earlier call ended; only thin run directories are kept. Flags
after ``--`` go to ``cgbench run``. ``analyse`` needs no device: it compares every pair of plain
runs, plain runs with themselves resampled (together ``--trials`` comparisons), and every plain run
with every planted one.
"""

import argparse
import sys
from pathlib import Path

DEFAULT_WORDS = (
    *("default", "--spec-tokens", "3", "--scopes", "phase,iteration", "--role", "decode"),
    *("--batch-sizes", "1,8", "--capture-sizes", "1,8"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="make the runs")
    record.add_argument("--output", type=Path, required=True, help="folder of the thin runs")
    record.add_argument("--runs", type=int, default=20, help="of each kind")
    record.add_argument("--seconds", type=float, default=280.0, help="begin no run that ends later")
    record.add_argument("--share", type=float, default=0.03, help="of an iteration, planted")
    record.add_argument("--start", choices=("forkserver", "spawn"), default="forkserver")
    record.add_argument(
        "words", nargs="*", help=f"cgbench run's; default {' '.join(DEFAULT_WORDS)}"
    )
    analyse = commands.add_parser("analyse", help="compare them")
    analyse.add_argument("runs", type=Path, help="what record wrote")
    analyse.add_argument("--output", type=Path, required=True, help="gets gate.json and gate.md")
    analyse.add_argument("--trials", type=int, default=500, help="A/A comparisons in all")
    analyse.add_argument("--gate", default=None, help="as of cgbench compare")
    analyse.add_argument("--seed", type=int, default=0, help="of the resampling")
    return parser.parse_args()


def record(arguments: argparse.Namespace) -> None:
    from cgbench.door.prepare import use_passive_threads
    from gate.recording import Job
    from gate.recording import record as make

    use_passive_threads()
    words = tuple(arguments.words or DEFAULT_WORDS)
    limits = (arguments.runs, arguments.seconds, arguments.start)
    make(
        Job(words, arguments.output, arguments.share, *limits), lambda line: print(line, flush=True)
    )


def analyse(arguments: argparse.Namespace) -> None:
    from cgbench.gate.comparison import Rules
    from cgbench.gate.verdicts import DEFAULT_GATE, Gate
    from gate import report, trials
    from gate.recording import PLAIN, PLANTED, Recording

    rules = Rules(gate=Gate.parse(arguments.gate) if arguments.gate else DEFAULT_GATE)
    recording = Recording.read(arguments.runs)
    runs = {
        kind: trials.read_runs(arguments.runs, recording.names(kind), kind)
        for kind in (PLAIN, PLANTED)
    }
    if not all(runs.values()):
        sys.exit(f"error: {arguments.runs}: too few runs; go on with record")
    for reason in trials.incomparable([*runs[PLAIN], *runs[PLANTED]]):
        sys.exit(f"error: {reason}")
    quiet = [*trials.rerun_trials(runs[PLAIN], rules)]
    missing = max(arguments.trials - len(quiet), 0)
    quiet += trials.resampled_trials(runs[PLAIN], rules, missing, arguments.seed)
    lengths = trials.places(recording.seconds_planted())
    slow = [*trials.planted_trials(runs[PLAIN], runs[PLANTED], rules, lengths)]
    found = report.summary([*quiet, *slow], recording, runs)
    report.write(found, arguments.output)
    print(report.markdown(found))


def main() -> None:
    arguments = parse_arguments()
    (record if arguments.command == "record" else analyse)(arguments)


if __name__ == "__main__":
    main()
