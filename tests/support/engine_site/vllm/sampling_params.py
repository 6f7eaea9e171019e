"""The parameters of a request."""

from dataclasses import dataclass
from enum import Enum


class RequestOutputKind(Enum):
    """What an output holds."""

    CUMULATIVE = 0
    DELTA = 1


@dataclass
class SamplingParams:
    """How a request is sampled."""

    temperature: float
    ignore_eos: bool
    max_tokens: int
    detokenize: bool
    output_kind: RequestOutputKind
