"""List the memory of GPUs by name, because engines take their defaults from it."""

import re
from dataclasses import dataclass

from cgbench.errors import BadInputError

_MIB = 1024**2
_GIB = 1024**3

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_MOST_BYTES = 10**13


@dataclass(frozen=True, slots=True)
class Gpu:
    """A ``Gpu`` is one GPU, described by its name and the memory in bytes that its driver reports.

    ``is_blackwell`` marks Blackwell's data-centre parts (compute capability 10).
    """

    name: str
    memory_bytes: int
    is_blackwell: bool = False

    @property
    def memory_gib(self) -> float:
        """Return the memory in GiB."""
        return self.memory_bytes / _GIB


# MiB as ``nvidia-smi`` or ``rocm-smi`` prints them.
_MEMORY_MIB = {
    "t4": 15_360,
    "rtx4080": 16_376,
    "l4": 23_034,
    "a10": 23_028,
    "rtx4090": 24_564,
    "rtx5090": 32_607,
    "a100-40g": 40_960,
    "l40": 46_068,
    "l40s": 46_068,
    "a100": 81_920,
    "h100": 81_559,
    "h100-nvl": 95_830,
    "h20": 97_871,
    "rtx-pro-6000": 97_887,
    "h200": 143_771,
    "b200": 183_359,
    "gb200": 189_471,
    "mi300x": 196_592,
    "mi325x": 262_128,
    "b300": 275_040,
    "gb300": 284_208,
    "mi355x": 294_896,
}
_BLACKWELL = ("b200", "gb200", "b300", "gb300")

GPUS: dict[str, Gpu] = {
    name: Gpu(name, mib * _MIB, name in _BLACKWELL) for name, mib in _MEMORY_MIB.items()
}


def parse_gpu(text: str) -> Gpu:
    """Return the GPU that ``--gpu`` names: ``h200``, or a memory such as ``80GiB`` or plain bytes.

    Raise ``BadInputError`` naming the flag.
    """
    if found := GPUS.get(text.strip().lower()):
        return found
    sized = _SIZE.fullmatch(text.strip())
    num_bytes = _bytes(*sized.groups()) if sized else 0.0
    if not _GIB <= num_bytes <= _MOST_BYTES:
        raise BadInputError(
            f"--gpu {text[:40]}: must be one of {', '.join(GPUS)}, or a memory of at least 1GiB"
        )
    return Gpu(text.strip(), int(num_bytes))


def _bytes(number: str, unit: str | None) -> float:
    if not unit:
        return float(number)
    base = 1024 if unit.lower().endswith("i") else 1000
    return float(number) * float(base ** ("KMGT".index(unit[0].upper()) + 1))
