"""Whether an engine's newest release still follows the policy that is named after it.

    python scripts/trials/drift.py vllm 0.33.0 --policy vllm-0.33
    python scripts/trials/drift.py sglang 0.5.23 --policy sglang-0.5.23

The release's wheel is downloaded from the package index. Only its size functions are taken out of
it, and run on the CPU with stand-ins for everything else. Nothing of it is kept. Their answers are
compared with the policy's over thousands of configurations. Exit code 0: no difference. 1: some,
and the smallest is printed. 3: the release could not be read.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_rules import sglang_rule, vllm_rule
from engine_rules.comparison import compared, report
from engine_rules.functions import MissingError
from engine_rules.wheel import WheelError, download, read_members

DEFAULT_COUNT = 6_000


@dataclass(frozen=True)
class Engine:
    """Where an engine's rule is, and how it is asked."""

    members: tuple[str, ...]
    engine_of: Callable[..., Any]
    policy_answer: Callable[[str], Any]
    cases: Callable[..., Any]


ENGINES = {
    name: Engine(rule.MEMBERS, rule.engine_of, rule.policy_answer, rule.cases)
    for name, rule in (("vllm", vllm_rule), ("sglang", sglang_rule))
}


def main(arguments: list[str] | None = None) -> int:
    """Compare one release with one policy, and print the result."""
    options = _parser().parse_args(arguments)
    engine = ENGINES[options.engine]
    try:
        sources = (
            read_members(options.wheel, engine.members)
            if options.wheel
            else download(options.engine, options.version, engine.members)
        )
        theirs = engine.engine_of(sources)
    except (WheelError, MissingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    ours = engine.policy_answer(options.policy)
    drift = compared(engine.cases(options.plans, options.seed), theirs, ours)
    print(report(f"{options.engine} {options.version}", options.policy, drift))
    return 1 if drift.differences else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("version", help="a release on the package index")
    parser.add_argument("--policy", required=True, help="the policy to hold it to")
    parser.add_argument("--plans", type=int, default=DEFAULT_COUNT, help="configurations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wheel", type=Path, help="a wheel on disk, instead of a download")
    return parser


if __name__ == "__main__":
    sys.exit(main())
