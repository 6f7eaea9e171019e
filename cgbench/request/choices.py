"""Declare every value that is one of a few words, and no other value.

``words.Routing`` and ``planning.CaptureUnit`` are two more. Other rooms need those first.
"""

from enum import StrEnum


class Device(StrEnum):
    """A ``Device`` states where to run. AUTO takes a GPU if there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """A ``Dtype`` states the number format of weights, and of KV unless ``KvDtype`` does.

    AUTO is bfloat16 on CUDA and float32 on CPU.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class KvDtype(StrEnum):
    """A ``KvDtype`` states the number format of keys and values.

    AUTO is that of the model. FP8 is e4m3 with scales.
    """

    AUTO = "auto"
    FP8 = "fp8"


class QuantMode(StrEnum):
    """A ``QuantMode`` states the numeric mode of FP8 weights.

    AUTO is W8A16, which leaves activations as they are. W8A8 quantises them too.
    """

    AUTO = "auto"
    W8A16 = "w8a16"
    W8A8 = "w8a8"


class Compile(StrEnum):
    """A ``Compile`` states whether the decode layers go through ``torch.compile``."""

    OFF = "off"
    DEFAULT = "default"


class NormSide(StrEnum):
    """A ``NormSide`` states whether the hidden state is taken before a norm or after it."""

    PRE = "pre"
    POST = "post"


class ConcatOrder(StrEnum):
    """A ``ConcatOrder`` is the order of embedding E and hidden state H in a head's projection."""

    EH = "EH"
    HE = "HE"


class FirstEmbedding(StrEnum):
    """A ``FirstEmbedding`` states whether a head's embedding at position 0 is zeroed."""

    KEPT = "kept"
    ZEROED = "zeroed"


class ModuleFeed(StrEnum):
    """A module past a head's first reads the chain of the one before it, or the target's state."""

    CHAIN = "chain"
    TARGET = "target"


class OutputNorm(StrEnum):
    """An ``OutputNorm`` names the norm before a head's output matrix: its own, the target's, or
    none.
    """

    OWN = "own"
    TARGET = "target"
    NONE = "none"


class NormForm(StrEnum):
    """A ``NormForm`` states how stored norm weights scale: as the target's do, by w, or
    by 1 + w.
    """

    TARGET = "target"
    PLAIN = "plain"
    ONE_PLUS = "one_plus"


class HeadPlacement(StrEnum):
    """A ``HeadPlacement`` states whether ranks divide the head's block, or each holds all of it."""

    DIVIDED = "divided"
    WHOLE = "whole"


class Role(StrEnum):
    """A ``Role`` states what a deployment serves: prefill and decode, or decode alone."""

    MIXED = "mixed"
    DECODE = "decode"


class ChatTemplate(StrEnum):
    """A ``ChatTemplate`` states whether prompts go through the model's chat template."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AcceptanceKind(StrEnum):
    """An ``AcceptanceKind`` names how an acceptance rule decides.

    ``AcceptanceSetting`` explains each.
    """

    GREEDY = "greedy"
    SAMPLED = "sampled"
    LENGTH = "length"
    GOLDEN = "golden"
    SYNTHETIC = "synthetic"


class Drafts(StrEnum):
    """A ``Drafts`` states how drafts are chosen under sampled acceptance."""

    SAMPLED = "sampled"
    GREEDY = "greedy"
