"""Telemetry and what it rules out, on a made-up GPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cgbench.floor.telemetry import NoTelemetry, NvmlTelemetry, Reading, Watch, open_telemetry
from cgbench.measure.disturbance import (
    Watched,
    is_disturbed,
    is_power_limited,
    power_limit,
    reasons_to_discard,
)

QUIET = Reading(1980, 3201, 45, 310.5, frozenset({"gpu_idle"}), frozenset({7, 8}))
CAPPED = frozenset({"sw_power_cap"})
AT_START = frozenset({7, 8})


def reading(**changes: Any) -> Reading:
    return Reading(
        **{name: getattr(QUIET, name) for name in Reading.__dataclass_fields__} | changes
    )


def judged(*after: Reading) -> list[str]:
    """Three quiet blocks, and those that end in ``after``."""
    blocks = [Watched(QUIET, each) for each in (QUIET, QUIET, QUIET, *after)]
    return reasons_to_discard(blocks, AT_START)[3:]


@pytest.mark.parametrize("reason", ["hw_thermal", "sw_thermal", "power_brake", "hw_slowdown"])
def test_a_throttled_block_is_discarded(reason: str) -> None:
    assert judged(reading(reasons=frozenset({reason})), QUIET) == [reason, ""]


@pytest.mark.parametrize("reason", ["gpu_idle", "sw_power_cap", "application_clocks"])
def test_what_a_busy_gpu_always_says_discards_nothing(reason: str) -> None:
    assert judged(reading(reasons=frozenset({reason}))) == [""]


def test_throttling_before_the_block_counts_too() -> None:
    hot = reading(reasons=frozenset({"hw_thermal"}))
    assert reasons_to_discard([Watched(hot, QUIET)], AT_START) == ["hw_thermal"]


def test_a_process_that_appeared_is_told_from_those_that_were_there() -> None:
    assert judged(reading(processes=frozenset({7, 8, 9})), reading(processes=frozenset({8}))) == [
        "other_process",
        "",
    ]


@pytest.mark.parametrize(
    ("clock_mhz", "reason"), [(1980, ""), (1935, ""), (1900, "sm_clock"), (2060, "sm_clock")]
)
def test_a_clock_away_from_the_cells_median(clock_mhz: int, reason: str) -> None:
    assert judged(reading(sm_clock_mhz=clock_mhz)) == [reason]


def capped(*clocks_mhz: int) -> list[Watched]:
    return [Watched(QUIET, reading(sm_clock_mhz=each, reasons=CAPPED)) for each in clocks_mhz]


def test_at_the_power_limit_no_clock_is_judged() -> None:
    blocks = capped(1965, 1455, 1590, 1965)
    assert reasons_to_discard(blocks, AT_START) == [""] * 4
    hot = reading(reasons=CAPPED | {"hw_thermal"}, sm_clock_mhz=1200)
    assert reasons_to_discard([*blocks, Watched(QUIET, hot)], AT_START)[4] == "hw_thermal"


def test_a_cell_that_touches_the_power_limit_now_and_then_is_judged_by_its_clock() -> None:
    blocks = [*capped(1455, 1455), Watched(QUIET, QUIET), Watched(QUIET, QUIET)]
    assert not is_power_limited(blocks) and is_power_limited(blocks[:3])
    assert reasons_to_discard([*blocks, blocks[-1]], AT_START) == [
        "sm_clock",
        "sm_clock",
        "",
        "",
        "",
    ]


def test_the_power_limit_is_told_with_the_cells_that_reach_it() -> None:
    quiet = [Watched(QUIET, QUIET)]
    assert power_limit({"iteration k=0": quiet, "iteration k=3": [Watched(None, None)]}) is None
    line = power_limit({"iteration k=0": quiet, "iteration k=3": capped(1965, 1455)})
    assert line is not None and line.startswith("iteration k=3: at the GPU's power limit")
    assert "1,455 to 1,965 MHz" in line
    clockless = [Watched(None, Reading(reasons=CAPPED))]
    assert "MHz" not in str(power_limit({"iteration k=3": clockless}))


def test_a_gpu_that_tells_nothing_discards_nothing() -> None:
    blocks = [Watched(None, None), Watched(Reading(), Reading())]
    assert reasons_to_discard(blocks, frozenset()) == ["", ""]


@pytest.mark.parametrize(("bad", "disturbed"), [(0, False), (2, False), (3, True), (8, True)])
def test_a_cell_that_lost_over_a_quarter_of_its_blocks_is_disturbed(
    bad: int, disturbed: bool
) -> None:
    assert is_disturbed(["hw_thermal"] * bad + [""] * (8 - bad)) is disturbed
    assert not is_disturbed([])


class NVMLError(Exception):
    pass


def nvml(**changes: Any) -> Any:
    """As much of pynvml as is asked, for a GPU that runs hot."""

    def not_supported(*_: object) -> None:
        raise NVMLError

    answers: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": "sm",
        "NVML_CLOCK_MEM": "memory",
        "NVML_TEMPERATURE_GPU": "gpu",
        "nvmlDeviceGetPowerUsage": lambda _: 512_250,
        "nvmlDeviceGetClockInfo": lambda _, clock: {"sm": 1755, "memory": 3201}[clock],
        "nvmlDeviceGetTemperature": lambda *_: 81,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x4 | 0x40,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=5)],
    }
    answers |= {name: not_supported if value is None else value for name, value in changes.items()}
    return SimpleNamespace(**answers)


def test_a_reading() -> None:
    assert NvmlTelemetry(nvml(), "gpu 0").read() == Reading(
        1755, 3201, 81, 512.25, frozenset({"sw_power_cap", "hw_thermal"}), frozenset({5})
    )


def test_what_a_gpu_does_not_support_is_left_out() -> None:
    names = [name for name in vars(nvml()) if name.startswith("nvml")]
    assert NvmlTelemetry(nvml(**dict.fromkeys(names)), "gpu 0").read() == Reading()


def test_the_names_asked_for_are_pynvmls() -> None:
    import pynvml

    assert all(hasattr(pynvml, name) for name in vars(nvml()))


def test_a_cpu_has_no_telemetry() -> None:
    with open_telemetry(torch.device("cpu")) as telemetry:
        assert isinstance(telemetry, NoTelemetry) and telemetry.read() is None


def test_a_watch_knows_who_was_there_at_the_start() -> None:
    readings = iter([QUIET, reading(processes=frozenset({9}))])
    watch = Watch(SimpleNamespace(read=lambda: next(readings)))
    assert (watch.at_start, watch.latest) == (AT_START, QUIET)
    assert watch.read() is watch.latest and watch.at_start == AT_START
