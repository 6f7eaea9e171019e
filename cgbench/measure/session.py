"""A session: one deployment, what it decodes, and what it is measured by."""

from dataclasses import dataclass

import torch

from cgbench.engine.deployment import Deployment
from cgbench.engine.iteration import Speculator
from cgbench.errors import BadInputError
from cgbench.floor.least_time import Floor
from cgbench.floor.telemetry import Watch
from cgbench.measure.run_clock import Clock
from cgbench.request.options import RunOptions
from cgbench.workload.load import Workload


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that ``measure_group`` works with. ``deployment`` has its graphs captured, and
    ``floor`` was measured before they took their memory."""

    deployment: Deployment
    options: RunOptions
    workload: Workload
    watch: Watch
    floor: Floor
    clock: Clock

    @property
    def spec(self) -> Speculator:
        return self.deployment.spec

    @property
    def device(self) -> torch.device:
        return self.deployment.device


def room_for(options: RunOptions, workload: Workload, max_positions: int) -> int:
    """KV rows a slot needs, in tokens: the longest context, what is decoded past it, and 2k rows
    that drafts past the last emitted token may write.

    Raises ``BadInputError`` where the model's positions do not reach that far.
    """
    room = max(workload.longest, options.context_len) + options.to_decode
    if room > max_positions:
        raise BadInputError(
            f"{_longest_words(options, workload)}: with {options.to_decode} tokens to decode it is "
            f"over the model's {max_positions} positions; shorten it, or lower "
            f"{' or '.join(options.reach_flags)}"
        )
    return room


def check_prefill(options: RunOptions, workload: Workload) -> None:
    """Raises ``BadInputError`` where a prompt is over ``--max-num-batched-tokens``."""
    if max(workload.longest, options.context_len) > options.max_num_batched_tokens:
        raise BadInputError(
            f"--max-num-batched-tokens {options.max_num_batched_tokens}: too few for "
            f"{_longest_words(options, workload)}"
        )


def _longest_words(options: RunOptions, workload: Workload) -> str:
    """The longest prefill as an error line names it: by its flag, and which prompt it is."""
    if options.context_len >= workload.longest:
        return f"--context-len {options.context_len}"
    number = workload.longest_number
    return f"--prompts {workload.source}, prompt {number} of {workload.longest} tokens"
