"""What a comparison of peers is asked to do, checked before anything is loaded. No torch here."""

from dataclasses import dataclass
from math import isfinite

from cgbench.errors import BadInputError
from cgbench.inputs import check_whole
from cgbench.planning import MAX_SPEC_TOKENS, check_batch_size

MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class PeersRequest:
    """What to compare, and for how long. ``named`` is empty where all peers are asked for."""

    spec_tokens: int
    batch_size: int
    context_len: int
    new_tokens: int
    named: list[str]
    seconds: float
    rounds: int

    def __post_init__(self) -> None:
        check_whole("--spec-tokens", self.spec_tokens, 1, MAX_SPEC_TOKENS)
        check_batch_size("--batch-size", self.batch_size)
        check_whole("--context-len", self.context_len, 1)
        check_whole("--max-new-tokens", self.new_tokens, 2)
        check_whole("--rounds", self.rounds, 1, MAX_ROUNDS)
        if not (isfinite(self.seconds) and self.seconds >= 0):
            raise BadInputError(f"--seconds {self.seconds:g}: must be 0 or more")
