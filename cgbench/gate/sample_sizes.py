"""Compute how many requests a comparison needs, from the noise that one result shows.

A change is called regressed if its interval excludes 0 and it is at least the minimum effect. So
the power at a true effect e is the chance that a normal estimate of it exceeds both. It is solved
for the standard error, which shrinks with the square root of the requests of each side.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, expm1, log1p, sqrt
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from cgbench.errors import BadInputError, CannotError
from cgbench.gate.bench_files import BenchFile, read_bench_file
from cgbench.gate.bench_run import BenchRun
from cgbench.gate.evidence import Observed
from cgbench.gate.verdicts import ACCEPTANCE, ITL, LATENCY, TPOT, TTFT, Metric
from cgbench.inputs import check_share
from cgbench.statistics import adjusted_level, log_length_estimate

NUM_GATED = 3
"""Intervals that ``compare`` gates of one result by default: TPOT, latency and acceptance."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ``Wanted`` states the change to detect, and how surely.

    All are shares above 0 and below 1. Raise ``BadInputError`` if one is not.
    """

    effect: float = 0.05
    power: float = 0.9
    confidence: float = 0.95
    min_effect: float = 0.02

    def __post_init__(self) -> None:
        for name in ("effect", "power", "confidence", "min_effect"):
            check_share(f"--{name.replace('_', '-')}", getattr(self, name))
        if self.power <= 0.5:
            raise BadInputError(f"--power {self.power:g}: must be above 0.5")
        if self.effect <= self.min_effect:
            raise BadInputError(
                f"--effect {self.effect:g}: must be above --min-effect {self.min_effect:g}, or a "
                "change of just that size is called in half of all comparisons at most"
            )


@dataclass(frozen=True, slots=True)
class SampleSize:
    """A sample size states how many requests one metric needs to show a change.

    ``noise`` is the standard error of one request's worth, as a share. ``detectable`` is the least
    change that as many requests as the result has detect. ``needed`` requests a side detect the
    effect that was asked for.
    """

    metric: str
    requests: int
    noise: float
    detectable: float
    needed: int


def sample_sizes(path: Path, wanted: Wanted) -> list[SampleSize]:
    """Return the sample size of each metric of the result in ``path``.

    Raise ``RunDirectoryError`` if it is no result of a known tool, and ``CannotError`` if it holds
    no samples.
    """
    file = read_bench_file("FILE", path)
    found = [*_sizes(file, wanted)]
    if not found:
        hint = file.runs[0].hint
        raise CannotError(f"FILE {path}: holds no samples" + (f". {hint}" if hint else ""))
    return found


def sizes_json(path: Path, wanted: Wanted, sizes: list[SampleSize]) -> str:
    """Return the sample sizes, and what they detect, as one JSON object."""
    content = {"file": str(path), **asdict(wanted), "metrics": [asdict(each) for each in sizes]}
    return json.dumps(content, indent=2, allow_nan=False)


def _sizes(file: BenchFile, wanted: Wanted) -> Iterator[SampleSize]:
    run = file.runs[-1]
    for metric in (TPOT, LATENCY, TTFT, ITL, ACCEPTANCE):
        noise, requests = _noise(run, metric)
        if requests >= 2 and noise > 0:
            yield _size(metric, noise, requests, wanted)


def _noise(run: BenchRun, metric: Metric) -> tuple[float, int]:
    """Return the standard error of one request's worth, and how many requests there are."""
    values = np.array([value for value in run.samples.get(metric.name, ()) if value > 0])
    if len(values) > 1:
        return Observed(values).log_estimate().error * sqrt(len(values)), len(values)
    requests = max((len(each) for each in run.samples.values()), default=0)
    if metric is ACCEPTANCE and run.counts and requests:
        estimate = log_length_estimate([accepted for accepted, _ in run.counts], run.counts[0][1])
        return estimate.error * sqrt(requests), requests
    return 0.0, 0


def _size(metric: Metric, noise: float, requests: int, wanted: Wanted) -> SampleSize:
    level = adjusted_level(wanted.confidence, NUM_GATED)
    excludes, reaches = float(ndtri((1 + level) / 2)), float(ndtri(wanted.power))
    effect, least = log1p(wanted.effect), log1p(wanted.min_effect)
    error = min((effect - least) / reaches, effect / (excludes + reaches))
    own = noise * sqrt(2 / requests)
    detectable = max(least + reaches * own, (excludes + reaches) * own)
    needed = ceil(2 * (noise / error) ** 2)
    return SampleSize(metric.title, requests, noise, expm1(min(detectable, 50.0)), needed)
