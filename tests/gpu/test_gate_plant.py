"""The planted kernel: in a graph of its own it takes as long as was asked for."""

import pytest

from gate.plant import calibrate, node_seconds

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("wanted", [10e-6, 30e-6, 80e-6])
def test_a_node_takes_as_long_as_asked(wanted: float) -> None:
    kernel = calibrate()
    cycles = kernel.cycles(wanted)
    assert kernel.seconds(cycles) == pytest.approx(wanted, rel=0.01)
    assert node_seconds(cycles) == pytest.approx(wanted, rel=0.05)
