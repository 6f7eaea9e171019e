"""A session joins one deployment with the work that it decodes and the means to measure it."""

from dataclasses import dataclass

import torch

from cgbench.engine.deployment import Deployment
from cgbench.engine.iteration import Speculator
from cgbench.errors import BadInputError
from cgbench.floor.least_time import Floor
from cgbench.floor.telemetry import Watch
from cgbench.measure.run_clock import Clock
from cgbench.parallel.ranks import Ranks
from cgbench.request.options import RunOptions
from cgbench.workload.load import Workload


@dataclass(frozen=True, slots=True)
class Session:
    """A ``Session`` holds everything that ``measure_group`` works with. The graphs of
    ``deployment`` are captured. ``floor`` was measured before they took their memory.
    """

    deployment: Deployment
    options: RunOptions
    workload: Workload
    watch: Watch
    floor: Floor
    clock: Clock

    @property
    def spec(self) -> Speculator:
        """Return what an iteration computes with: target, head, KV cache, attention and acceptance
        rule.
        """
        return self.deployment.spec

    @property
    def device(self) -> torch.device:
        """Return the device of the deployment."""
        return self.deployment.device

    @property
    def ranks(self) -> Ranks:
        """Return the ranks that share the model."""
        return self.deployment.model.ranks


def room_for(options: RunOptions, workload: Workload, max_positions: int) -> int:
    """Return the KV rows that a slot needs. They are the longest context, the tokens decoded past
    it, and 2k rows that drafts past the last emitted token may write.

    Raise ``BadInputError`` if the model's positions do not reach that far.
    """
    room = max(workload.longest, options.context_len) + options.to_decode
    if room > max_positions:
        raise BadInputError(
            f"{_longest_words(options, workload)}: with {options.to_decode} tokens to decode it is "
            f"over the model's {max_positions} positions. Shorten it, or lower "
            f"{' or '.join(options.reach_flags)}"
        )
    return room


def check_prefill(options: RunOptions, workload: Workload) -> None:
    """Raise ``BadInputError`` if a prompt or ``--context-len`` is over
    ``--max-num-batched-tokens``.
    """
    if max(workload.longest, options.context_len) > options.max_num_batched_tokens:
        raise BadInputError(
            f"--max-num-batched-tokens {options.max_num_batched_tokens}: too few for "
            f"{_longest_words(options, workload)}"
        )


def _longest_words(options: RunOptions, workload: Workload) -> str:
    """Return the longest prefill as an error line names it: its flag, and which prompt it is."""
    if options.context_len >= workload.longest:
        return f"--context-len {options.context_len}"
    number = workload.longest_number
    return f"--prompts {workload.source}, prompt {number} of {workload.longest} tokens"
