"""Hold one cell while it is measured: its tokens, acceptance, samples and memory peak."""

import resource
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from cgbench.engine.generation import Generated
from cgbench.engine.runner import Runner
from cgbench.errors import OutOfMemoryError
from cgbench.floor.least_time import Batch
from cgbench.measure.clock import IterationTime
from cgbench.measure.disturbance import Watched
from cgbench.parallel.ranks import Ranks
from cgbench.rundir.schema import Sample
from cgbench.words import Mode, Stage, Status


@dataclass(frozen=True, slots=True)
class TimedBlock:
    """A ``TimedBlock`` holds the times of one block of one cell. ``number`` is the number of its
    round. ``mean_context_len`` is the mean of KV rows per request over the timed iterations.
    """

    number: int
    times: list[IterationTime]
    mean_context_len: float
    watched: Watched

    @property
    def median_s(self) -> float:
        """Return the median GPU time of the block's iterations, in seconds. On a CPU it is wall
        time.
        """
        return median(each.gpu_s for each in self.times)


@dataclass
class CellRun:
    """A ``CellRun`` collects what one cell gives while it is measured. ``samples`` are rows of the
    samples file.
    """

    runner: Runner
    batch_size: int
    token_ids: list[list[int]] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """Drafts kept by each iteration of each request."""
    peak_memory_bytes: int = 0
    samples: list[Sample] = field(default_factory=list)
    status: Status = Status.OK
    failure: str | None = None
    """The difference that the short audit found, if it found one."""
    block_iterations: int = 0
    """Timed iterations of each block."""
    blocks: list[TimedBlock] = field(default_factory=list)
    experts_read: dict[Stage, float] = field(default_factory=dict)
    """By stage, the mean number of distinct experts per expert layer in one forward. It is empty
    for a dense model.
    """
    discarded: list[str] = field(default_factory=list)
    """The reason why each block does not count. It is empty for a block that counts."""
    stretches: int = 0
    """Stretches of the timed pass so far."""
    _num_samples: Counter[Stage] = field(default_factory=Counter)

    @property
    def spec_tokens(self) -> int:
        """Return k, the draft tokens proposed per request and iteration."""
        return self.runner.state.spec_tokens

    @property
    def name(self) -> str:
        """Return the cell's name among those of its batch size, from its scope and k."""
        return f"{self.runner.scope} k={self.spec_tokens}"

    @property
    def mode(self) -> Mode:
        """Return whether the cell replays graphs or runs eager."""
        return self.runner.mode(self.batch_size)

    def absorb(self, generated: Generated) -> None:
        """Add the tokens and the acceptance of one wave."""
        self.token_ids += generated.token_ids
        self.accepted += [count for counts in generated.accepted for count in counts]

    @property
    def kept(self) -> list[TimedBlock]:
        """Return the blocks that count."""
        pairs = zip(self.blocks, self.discarded, strict=True)
        return [block for block, reason in pairs if not reason]

    @property
    def mean_context_len(self) -> float | None:
        """Return the mean of KV rows per request over the blocks that count. It is None if no block
        counts yet.
        """
        lengths = [block.mean_context_len for block in self.kept]
        return fmean(lengths) if lengths else None

    @property
    def timed_batch(self) -> Batch | None:
        """Return the average work of a timed iteration. It is None if no block counts yet."""
        length = self.mean_context_len
        if length is None:
            return None
        return Batch(self.batch_size, self.spec_tokens, length, self.experts_read)

    @property
    def medians(self) -> list[float]:
        """Return the medians of the blocks that count, in seconds."""
        return [block.median_s for block in self.kept]

    def keep_samples(self) -> None:
        """Turn the blocks that count into samples."""
        for block in self.kept:
            for times in block.times:
                self.add_sample(block.number, Stage.ITERATION, times.gpu_s, times.wall_s)

    def add_sample(self, block: int, stage: Stage, gpu_s: float, wall_s: float | None) -> None:
        """Add one sample of a stage. The sample's ``iteration`` counts the samples of that stage
        over all blocks.
        """
        self.samples.append(
            Sample(
                scope=self.runner.scope,
                spec_tokens=self.spec_tokens,
                batch_size=self.batch_size,
                mode=self.mode,
                block=block,
                iteration=self._num_samples[stage],
                stage=stage,
                gpu_s=gpu_s,
                wall_s=wall_s,
            )
        )
        self._num_samples[stage] += 1

    def next_stretch(self) -> int:
        """Return the number of the next stretch of the timed pass. Every cell counts alike, so the
        numbers serve as seeds of their draws.
        """
        self.stretches += 1
        return self.stretches - 1

    @contextmanager
    def watched(self, device: torch.device, ranks: Ranks) -> Iterator[None]:
        """Keep the peak of device memory, and turn running out of memory into a status.

        Raise ``OutOfMemoryError`` instead if several ``ranks`` share the model, because the others
        wait for this one.
        """
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        except torch.OutOfMemoryError as error:
            if ranks.size > 1:
                raise OutOfMemoryError(
                    f"out of memory measuring {self.name}, batch size {self.batch_size}: lower "
                    "--max-num-seqs, --batch-sizes or --context-len"
                ) from error
            self._drop(Status.OOM)
            torch.cuda.empty_cache()
        self.peak_memory_bytes = max(self.peak_memory_bytes, _peak_memory_bytes(device))

    def fail_audit(self, failure: str) -> None:
        """Mark the cell as wrong and drop its numbers, so that none is shown."""
        self.failure = failure
        self._drop(Status.AUDIT_FAILED)

    def _drop(self, status: Status) -> None:
        self.status = status
        self.samples.clear()
        self.accepted.clear()
        self.blocks.clear()
        self.discarded.clear()


def alive(runs: Iterable[CellRun]) -> list[CellRun]:
    """Return the cells that go on: those that neither ran out of memory nor failed the audit."""
    return [run for run in runs if run.status is Status.OK]


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
