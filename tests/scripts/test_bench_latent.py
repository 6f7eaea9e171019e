"""``scripts/trials/bench_latent.py``: the bytes and operations it counts, and a run on a CPU."""

import json
from pathlib import Path

import pytest
import torch

import bench_latent
from bench_latent import Case, Layers, Measured, Sizes, measure, num_layers, table, way_of
from cgbench.floor.rates import DeviceLimits

CPU = torch.device("cpu")
DEEPSEEK = Sizes(512, 64, 128, 128)
SMALL = Sizes(16, 8, 16, 16)
LIMITS = DeviceLimits(5e12, 8e14)


def test_bytes_are_latents_once_and_operations_of_every_head() -> None:
    """DeepSeek-V3 at k = 3: 1,152 bytes a token, and 128 heads' four queries on each."""
    case = Case("attention", 128, query_len=4, batch_size=64, context_len=8192, sizes=DEEPSEEK)
    assert case.live_bytes(2) == 64 * 8196 * 1152
    seen = 8193 + 8194 + 8195 + 8196
    assert case.flops == 64 * 2 * 128 * seen * (576 + 512)


def test_there_are_enough_layers_to_outgrow_a_cache_but_no_more() -> None:
    small = Case("attention", 4, 1, 1, 63, SMALL)
    assert num_layers(small, 4, CPU) == bench_latent.MAX_LAYERS
    case = Case("attention", 4, 1, 1, 1023, SMALL)
    assert num_layers(case, 4, CPU) == -(-(1 << 20) // (1024 * 24 * 4))
    large = Case("expanded", 128, 4, 64, 8192, DEEPSEEK)
    assert num_layers(large, 2, CPU) == 0


def test_the_table() -> None:
    case = Case("layer", 128, 4, 64, 8192, DEEPSEEK)
    rows = [
        Measured(case, 4, 400_000_000, 4e10, 1e-4),
        Measured(case, 4, 1, 1.0, None, "No module named 'flash_mla'"),
    ]
    assert table(rows, LIMITS)[2:] == [
        "| layer | 128 | 4 | 64 | 8192 | 4 | 100.00 | 400.0 | 50% | 4,000 | 80% |",
        "| layer | 128 | 4 | 64 | 8192 | 4 | No module named 'flash_mla' | | | | |",
    ]


def test_a_peer_that_is_missing_is_a_row_with_the_reason() -> None:
    case = Case("flash-mla", 4, 1, 1, 32, SMALL)
    row = measure(case, torch.float32, CPU)
    assert row.seconds is None and row.reason == "No module named 'flash_mla'"


def test_a_tile_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from cgbench.kernels.mla import triton_latent

    tiles: list[object] = []

    def attend(*arguments: object) -> None:
        tiles.append(arguments[-1])

    monkeypatch.setattr(triton_latent, "attend", attend)
    for numbers in ("64:32:8:3", "16:64:8:2:1"):
        way_of(Layers(Case(f"attention {numbers}", 4, 1, 1, 8, SMALL), 1, torch.float32, CPU))()
    assert tiles == [
        triton_latent.LatentTile(64, 32, 8, 3),
        triton_latent.LatentTile(16, 64, 8, 2, is_swapped=True),
    ]


def test_a_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--contexts", "16,32", "--batch-sizes", "2", "--query-lens", "1,4"]
    words += ["--rank", "16", "--rotary", "8", "--key-size", "16", "--value-size", "16"]
    bench_latent.main([*words, "--output", str(tmp_path / "out" / "latent")])
    record = json.loads((tmp_path / "out" / "latent.json").read_text())
    assert len(record["rows"]) == 4 and all(row["seconds"] > 0 for row in record["rows"])
    assert {row["case"]["way"] for row in record["rows"]} == {"definition"}
    assert (tmp_path / "out" / "latent.md").read_text() in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_way_is_replayed_from_a_graph(tmp_path: Path) -> None:
    words = ["--contexts", "1024", "--batch-sizes", "8", "--query-lens", "1,4", "--heads", "16"]
    words += ["--ways", "attention,layer,definition,expanded", "--tiles", "64:32:8:3"]
    bench_latent.main([*words, "--output", str(tmp_path / "latent")])
    record = json.loads((tmp_path / "latent.json").read_text())
    for row in record["rows"]:
        # Faster than memory would mean that a cache was read, or nothing.
        assert row["seconds"] is not None, row
        assert row["live_bytes"] / row["seconds"] < record["read_bytes_per_s"]
