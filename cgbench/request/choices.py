"""Values that are one of a few words are declared here alone.

``words.Routing`` and ``planning.CaptureUnit`` are two more. Other rooms need those first.
"""

from enum import StrEnum


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Compile(StrEnum):
    OFF = "off"
    DEFAULT = "default"


class NormSide(StrEnum):
    """The hidden state is taken before a norm, or after it."""

    PRE = "pre"
    POST = "post"


class ConcatOrder(StrEnum):
    """A head's projection reads embedding E and hidden state H in one of two orders."""

    EH = "EH"
    HE = "HE"


class FirstEmbedding(StrEnum):
    KEPT = "kept"
    ZEROED = "zeroed"


class ModuleFeed(StrEnum):
    """A module past a head's first reads the chain of the one before it, or the target's state."""

    CHAIN = "chain"
    TARGET = "target"


class OutputNorm(StrEnum):
    """A head's output matrix follows its own norm, the target's, or none."""

    OWN = "own"
    TARGET = "target"
    NONE = "none"


class NormForm(StrEnum):
    """Stored norm weights scale as the target's modules do, by w, or by 1 + w."""

    TARGET = "target"
    PLAIN = "plain"
    ONE_PLUS = "one_plus"


class HeadPlacement(StrEnum):
    """Whether ranks divide the head's block, or each holds all of it."""

    DIVIDED = "divided"
    WHOLE = "whole"


class Role(StrEnum):
    """What a deployment serves: prefill and decode, or decode alone."""

    MIXED = "mixed"
    DECODE = "decode"


class ChatTemplate(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AcceptanceKind(StrEnum):
    """How an acceptance rule decides: see ``AcceptanceSetting``."""

    GREEDY = "greedy"
    SAMPLED = "sampled"
    LENGTH = "length"
    GOLDEN = "golden"
    SYNTHETIC = "synthetic"


class Drafts(StrEnum):
    """How drafts are chosen under sampled acceptance."""

    SAMPLED = "sampled"
    GREEDY = "greedy"
