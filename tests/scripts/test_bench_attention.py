"""``scripts/trials/bench_attention.py``: the bytes it counts, and a run on a CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bench_attention
from bench_attention import Case, Layers, Measured, num_layers, table
from cgbench.errors import BadInputError
from cgbench.floor.work import AttentionShape

CPU = torch.device("cpu")
MIMO = AttentionShape(32, 8, 128, 128, None)
SMALL = AttentionShape(4, 2, 8, 8, None)


def test_live_bytes_are_keys_and_values_of_every_request() -> None:
    """MiMo-7B, bfloat16: 4 KiB a row."""
    case = Case("sdpa", MIMO, query_len=4, batch_size=64, context_len=1024)
    assert case.live_bytes(2) == 64 * 1028 * 4096
    windowed = Case("sdpa", AttentionShape(32, 8, 128, 128, 512), 4, 64, 1024)
    assert windowed.live_bytes(2) == 64 * 515 * 4096


def test_there_are_enough_layers_to_outgrow_a_cache_but_no_more() -> None:
    small = num_layers(Case("sdpa", MIMO, 1, 1, 127), 4, CPU)
    assert small == (1 << 26) // (128 * 8192)
    assert num_layers(Case("sdpa", MIMO, 1, 64, 4096), 4, CPU) == 0  # 2 GiB a layer
    tiny = num_layers(Case("sdpa", SMALL, 1, 1, 15), 4, CPU)
    assert tiny == bench_attention.MAX_LAYERS


@pytest.mark.parametrize("window", [None, 5])
def test_what_is_timed_is_attention_over_the_live_rows(window: int | None) -> None:
    case = Case("sdpa", AttentionShape(4, 2, 8, 8, window), 3, 2, 10)
    layers = Layers(case, 2, torch.float32, CPU)
    got = layers.forward()
    kv = layers._cache.layers[1]
    keys = kv.keys.view(3, 13, 2, 8)[:2].repeat_interleave(2, dim=2)
    values = kv.values.view(3, 13, 2, 8)[:2].repeat_interleave(2, dim=2)
    scores = torch.einsum("bhsd,bnhd->bhsn", layers._qkv.query, keys) / 8**0.5
    key_row, query_row = torch.arange(13), torch.arange(10, 13)[:, None]
    seen = key_row <= query_row
    if window is not None:
        seen &= key_row > query_row - window
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    torch.testing.assert_close(got, torch.einsum("bhsn,bnhd->bshd", weights, values))


def test_the_table() -> None:
    case = Case("triton", MIMO, 4, 64, 1024)
    rows = [
        Measured(case, 4, 4e8, 1e-4),
        Measured(Case("sdpa", MIMO, 1, 1, 8), 0, 1.0, None, "does not fit"),
    ]
    assert table(rows, 5e12)[2:] == [
        "| triton | 4 |  | 64 | 1024 | 4 | 100.00 | 4,000 | 80% |",
        "| sdpa | 1 |  | 1 | 8 | 0 | does not fit | | |",
    ]


FP8 = replace(MIMO, kv_itemsize=1, scale_bytes=8)


def test_fp8_keys_and_values_are_divided_by_the_others() -> None:
    """2 KiB a row, and the scales of eight heads."""
    plain, fp8 = (Case("triton", shape, 4, 64, 8192) for shape in (MIMO, FP8))
    assert fp8.live_bytes(2) == 64 * 8196 * (2048 + 8 * 8) and fp8.beside == plain
    assert (fp8.is_fp8, plain.is_fp8) == (True, False)
    rows = [Measured(plain, 4, 2e9, 5e-4), Measured(fp8, 4, 1.1e9, 2.9e-4)]
    assert [line.rpartition("% |")[2] for line in table(rows, 5e12)[2:]] == [
        " auto |  |",
        " fp8 | 0.58 |",
    ]


def test_fp8_keys_and_values_are_run_beside_the_others(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--contexts", "16", "--batch-sizes", "2", "--query-lens", "4"]
    words += ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--kv-dtype", "fp8"]
    bench_attention.main([*words, "--output", str(tmp_path / "attention")])
    rows = json.loads((tmp_path / "attention.json").read_text())["rows"]
    assert [row["case"]["shape"]["kv_itemsize"] for row in rows] == [None, 1]
    assert rows[0]["live_bytes"] * (16 + 4) == rows[1]["live_bytes"] * 4 * 16


def test_a_run_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--contexts", "16,32", "--batch-sizes", "2", "--query-lens", "1,4"]
    words += ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--windows", "0,8"]
    bench_attention.main([*words, "--output", str(tmp_path / "out" / "attention")])
    record = json.loads((tmp_path / "out" / "attention.json").read_text())
    assert len(record["rows"]) == 8 and all(row["seconds"] > 0 for row in record["rows"])
    assert {row["case"]["backend"] for row in record["rows"]} == {"sdpa"}
    assert (tmp_path / "out" / "attention.md").read_text() in capsys.readouterr().out


def test_a_tile_goes_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from cgbench.kernels import triton_attention

    tiles: list[object] = []

    def decode(kv: object, qkv: object, *others: object) -> torch.Tensor:
        tiles.append(others[-1])
        return torch.zeros(1)

    monkeypatch.setattr(triton_attention, "decode", decode)
    Layers(Case("triton 64:4:3", SMALL, 1, 1, 8), 2, torch.float32, CPU).forward()
    assert tiles == [triton_attention.KeyTile(64, 4, 3)] * 2


def test_a_backend_that_the_device_cannot_run_is_refused() -> None:
    assert bench_attention.backends("all", CPU) == ["sdpa"]
    with pytest.raises(BadInputError, match="triton"):
        bench_attention.backends("triton", CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_backend_is_replayed_from_a_graph(tmp_path: Path) -> None:
    words = ["--contexts", "128", "--batch-sizes", "1,8", "--query-lens", "4"]
    bench_attention.main([*words, "--output", str(tmp_path / "attention")])
    record = json.loads((tmp_path / "attention.json").read_text())
    assert {row["case"]["backend"] for row in record["rows"]} >= {"sdpa", "triton"}
    for row in record["rows"]:
        # Faster than memory would mean that a cache was read, or nothing.
        assert row["live_bytes"] / row["seconds"] < record["read_bytes_per_s"]
