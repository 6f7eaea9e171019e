"""Decide which blocks do not count, from what telemetry saw around them. There is no torch here.

Every block is judged again after each round, because the cell's median clock is known only then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cgbench.floor.telemetry import Reading

# Heat or the power supply held the GPU back, so it would be faster on another day. Three other
# reasons are left out. ``sw_power_cap``: a busy GPU runs at its power limit by design, in BASE as
# in NEW. ``gpu_idle``: a reading between two blocks may well see it. The third is a clock that
# somebody set.
THROTTLED = ("hw_thermal", "sw_thermal", "power_brake", "hw_slowdown")

POWER_LIMIT = "sw_power_cap"

MAX_CLOCK_DEPARTURE = 0.03
"""The largest departure of a block's SM clock from the cell's median, as a fraction. It is as large
as a regression that must be caught.
"""

MAX_DISCARDED_FRAC = 0.25
"""A cell that lost a larger fraction of its blocks is disturbed, because the rest is no chance
selection.
"""


@dataclass(frozen=True, slots=True)
class Watched:
    """A ``Watched`` holds the telemetry readings before and after one block. A reading is None if
    the device has no telemetry.
    """

    before: Reading | None
    after: Reading | None

    @property
    def readings(self) -> list[Reading]:
        """Return the readings that there are: none, one or two."""
        return [each for each in (self.before, self.after) if each is not None]

    @property
    def sm_clock_mhz(self) -> int | None:
        """Return the SM clock after the block, because before the block the GPU may have been
        waiting.
        """
        return None if self.after is None else self.after.sm_clock_mhz


def reasons_to_discard(blocks: Sequence[Watched], at_start: frozenset[int]) -> list[str]:
    """Return, for each block of one cell, the reason why it does not count. The reason is empty for
    a block that counts.

    ``at_start`` holds the processes that were on the GPU when the run began. They disturb every
    block alike, so they discard none. Our own process is among them, under the number that the
    driver's namespace gives it.
    """
    typical_mhz = None if is_power_limited(blocks) else _typical_clock(blocks)
    return [
        _throttled(each) or _other_process(each, at_start) or _other_clock(each, typical_mhz)
        for each in blocks
    ]


def is_power_limited(blocks: Sequence[Watched]) -> bool:
    """Return whether most of one cell's blocks end at the GPU's power limit.

    The GPU's regulator then moves the SM clock up and down within a block. So the clock read at one
    moment need not be the block's. Over the eight blocks of a recorded cell, clock and time
    correlate by anything from -0.90 to -0.03. Source: results/h200/tp, qwen3-32b at batch size 64
    (docs/measurement.md).
    """
    told = [each.after for each in blocks if each.after is not None]
    return 2 * sum(POWER_LIMIT in reading.reasons for reading in told) > len(told)


def power_limit(blocks: Mapping[str, Sequence[Watched]]) -> str | None:
    """Return a line that names the cells that ran at the power limit, or None if none did. The keys
    of ``blocks`` are the cells' names.
    """
    limited = {name: watched for name, watched in blocks.items() if is_power_limited(watched)}
    if not limited:
        return None
    clocks = [
        each.sm_clock_mhz
        for watched in limited.values()
        for each in watched
        if each.sm_clock_mhz is not None
    ]
    span = f" ({min(clocks):,} to {max(clocks):,} MHz)" if clocks else ""
    return (
        f"{', '.join(limited)}: at the GPU's power limit, so its regulator sets the SM clock{span} "
        "and no block is judged by it"
    )


def _typical_clock(blocks: Sequence[Watched]) -> float | None:
    clocks = [each.sm_clock_mhz for each in blocks if each.sm_clock_mhz is not None]
    return median(clocks) if clocks else None


def _throttled(block: Watched) -> str:
    seen = {reason for reading in block.readings for reason in reading.reasons}
    return next((reason for reason in THROTTLED if reason in seen), "")


def _other_process(block: Watched, at_start: frozenset[int]) -> str:
    new = any(reading.processes - at_start for reading in block.readings)
    return "other_process" if new else ""


def _other_clock(block: Watched, typical_mhz: float | None) -> str:
    clock_mhz = block.sm_clock_mhz
    if clock_mhz is None or not typical_mhz:
        return ""
    return "sm_clock" if abs(clock_mhz / typical_mhz - 1) > MAX_CLOCK_DEPARTURE else ""


def is_disturbed(reasons: Sequence[str]) -> bool:
    """Return whether too many of a cell's blocks were discarded for the others to be trusted."""
    return sum(map(bool, reasons)) > MAX_DISCARDED_FRAC * len(reasons)
