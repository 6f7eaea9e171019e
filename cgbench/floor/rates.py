"""These are a device's best rates, as a record keeps them. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The best rates seen: bytes read a second, and operations a second of a matrix product in
    the run's dtype (a multiply and an add are two)."""

    read_bytes_per_s: float
    flops_per_s: float
    read_spread_frac: float = 0.0
    """How much slower the median repetition of the fastest read was than its best."""
    cache_bytes: int | None = None
    """What the device's last cache holds: weights that fit need not come from memory. None where
    the system does not tell."""
