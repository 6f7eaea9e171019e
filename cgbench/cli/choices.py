"""The flags that take one of a few words."""

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
    PRE = "pre"
    POST = "post"


class ConcatOrder(StrEnum):
    EH = "EH"
    HE = "HE"


class FirstEmbedding(StrEnum):
    KEPT = "kept"
    ZEROED = "zeroed"


class OutputNorm(StrEnum):
    OWN = "own"
    TARGET = "target"
    NONE = "none"


class NormForm(StrEnum):
    TARGET = "target"
    PLAIN = "plain"
    ONE_PLUS = "one_plus"


class HeadPlacement(StrEnum):
    DIVIDED = "divided"
    WHOLE = "whole"


class Unit(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"


class RoleName(StrEnum):
    MIXED = "mixed"
    DECODE = "decode"


class ChatTemplate(StrEnum):
    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MARKDOWN = "markdown"


class CompareFormat(StrEnum):
    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"
    GITHUB = "github"
    JUNIT = "junit"
    BENCHMARK_JSON = "benchmark-json"
