"""Hold a device's best rates, as a record keeps them. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Device limits are the best rates that were measured on a device.

    They are bytes read a second, and operations a second of a matrix product in the run's dtype. A
    multiply and an add are two operations.
    """

    read_bytes_per_s: float
    flops_per_s: float
    read_spread_frac: float = 0.0
    """The median repetition of the fastest read was slower than its best by this fraction."""
    cache_bytes: int | None = None
    """The device's last cache holds this many bytes. Weights that fit need not come from memory.

    None if the system does not state it.
    """
    fp8_flops_per_s: float | None = None
    """Operations a second of a product of two FP8 matrices.

    None if it was not measured, because the run multiplies none.
    """
