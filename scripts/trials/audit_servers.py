"""Does the audit of a server cry wolf, and what does it find at a server that is not ours?

    python scripts/trials/audit_servers.py clean --audits 100 --output results/endpoint
    python scripts/trials/audit_servers.py faults --output results/endpoint
    python scripts/trials/audit_servers.py foreign transformers --output results/endpoint

``clean`` audits the tests' own server without a fault, by plans, seeds of arrival and lengths that
change. ``faults`` audits it with each fault. ``foreign`` starts an engine's own server on the
shipped model's target, audits it, and stops it. Run it where that engine is installed, or name its
Python with ``--python``.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    clean = commands.add_parser("clean", help="audit a sound server again and again")
    clean.add_argument("--output", type=Path, required=True, help="gets clean.md and clean.json")
    clean.add_argument("--audits", type=int, default=100, help="how many")
    faults = commands.add_parser("faults", help="audit a server with each planted fault")
    faults.add_argument("--output", type=Path, required=True, help="gets faults.md and faults.json")
    foreign = commands.add_parser("foreign", help="audit an engine's own server")
    foreign.add_argument("engine", choices=("transformers", "vllm"))
    foreign.add_argument("--output", type=Path, required=True, help="gets ENGINE.md and .json")
    foreign.add_argument("--python", default=sys.executable, help="a Python that has the engine")
    foreign.add_argument("--max-num-seqs", type=int, default=8)
    foreign.add_argument("--port", type=int, default=8765)
    return parser.parse_args()


def main() -> None:
    """Make one trial and write its page."""
    arguments = parse_arguments()
    # The server lies among the tests, which are no package of the installation.
    sys.path.insert(0, str(ROOT))
    if arguments.command == "foreign":
        from endpoint_trials.foreign import audit_foreign

        audit_foreign(
            arguments.engine,
            arguments.python,
            arguments.max_num_seqs,
            arguments.port,
            arguments.output,
        )
    elif arguments.command == "clean":
        from endpoint_trials.planted import audit_clean

        audit_clean(arguments.audits, arguments.output)
    else:
        from endpoint_trials.planted import audit_faults

        audit_faults(arguments.output)


if __name__ == "__main__":
    main()
