"""The resident kernel divides its tiles as it says. Gluon has no interpreter, so no sum is checked
here: ``bench_persistent.py`` compares each with torch's."""

import pytest
import torch

from persistent_layer import gluon_mlp


@pytest.mark.parametrize(("hidden", "inner"), [(4096, 11008), (5120, 25600), (1024, 3072)])
@pytest.mark.parametrize("programs", [132, 114, 7])
def test_each_unit_has_one_owner(hidden: int, inner: int, programs: int) -> None:
    for tiles, a_tile in ((inner // 64, hidden // 64), (hidden // 64, inner // 128)):
        units = tiles * a_tile
        runs = [range(units * p // programs, units * (p + 1) // programs) for p in range(programs)]
        owners = [gluon_mlp._owner.fn(unit, units, programs) for unit in range(units)]
        assert owners == [p for p, run in enumerate(runs) for _ in run]
        most = max(
            owners[(tile + 1) * a_tile - 1] - owners[tile * a_tile] + 1 for tile in range(tiles)
        )
        assert gluon_mlp.most_parts(units, a_tile, programs) >= most


def test_a_tile_of_too_many_parts_is_refused() -> None:
    gate_up = torch.zeros(1, 256, 64, dtype=torch.bfloat16)
    down = torch.zeros(1, 64, 128, dtype=torch.bfloat16)
    buffers = gluon_mlp.buffers_of(1, 8, 64, 128, down)
    with pytest.raises(ValueError, match="2 units for 132 programs"):
        gluon_mlp.mlps(buffers, gate_up, down, programs=132, slots=8)
