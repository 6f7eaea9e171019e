"""A real GPU's telemetry, and a flushed L2."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cgbench.cli.app import app
from cgbench.floor.telemetry import NvmlTelemetry, open_telemetry
from cgbench.measure.clock import l2_flush
from cgbench.rundir.store import RunDirectory

pytestmark = pytest.mark.gpu


def test_nvml_reads_the_gpu_that_torch_uses() -> None:
    with open_telemetry(torch.device("cuda", 0)) as telemetry:
        assert isinstance(telemetry, NvmlTelemetry)
        reading = telemetry.read()
    assert reading.sm_clock_mhz and reading.memory_clock_mhz
    assert reading.temperature_c and 0 < reading.temperature_c < 110


def read_seconds(flushed: bool) -> float:
    """The median time of reading 8 MB again."""
    device = torch.device("cuda", 0)
    data, flush = torch.ones(2 << 20, device=device), l2_flush(device)
    times = []
    for _ in range(50):
        data.sum()
        if flushed:
            flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        data.sum()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[25]


def test_a_flush_leaves_nothing_in_l2() -> None:
    assert read_seconds(flushed=True) > 1.05 * read_seconds(flushed=False)


@pytest.mark.parametrize("flag", ["", "--cold-l2"])
def test_a_run_has_telemetry_and_cold_rows_no_wall_time(tmp_path: Path, flag: str) -> None:
    out = tmp_path / "run"
    args = f"--batch-sizes 1 --max-time 1 --max-new-tokens 12 --context-len 16 {flag}"
    done = CliRunner().invoke(app, ["run", "default", "--output", str(out), *args.split()])
    assert done.exit_code in (0, 4), done.output
    directory = RunDirectory.open(out)
    frame, blocks = directory.latency(), directory.blocks()
    assert set(frame["l2"]) == {"cold" if flag else "warm"}
    assert frame["tpot_ms"].isna().all() == bool(flag)
    assert blocks["sm_clock_mhz"].notna().all() and blocks["temperature_c"].notna().all()
    assert directory.record.telemetry["sm_clock_mhz"]["median"] > 0
    assert (frame["mean_context_len"].max() - frame["mean_context_len"].min()) <= 2
