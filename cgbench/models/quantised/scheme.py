"""Read how a config's weights are quantised, and refuse by name what cannot be run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers import PretrainedConfig

from cgbench.errors import UnsupportedModelError
from cgbench.words import Quant

FIELD = "quantization_config"
BLOCK = 128
"""A block has this many rows and columns if a config states none."""

WORKS = (
    "Give a bfloat16, float16 or GGUF checkpoint, or one of FP8 (e4m3, with scales of blocks, "
    "channels or tensors)"
)

# The names that people use for formats.
_NAMES = {
    "awq": "AWQ (integers of four bits)",
    "gptq": "GPTQ (integers of four bits)",
    "mxfp4": "MXFP4 (floats of four bits)",
    "nvfp4": "NVFP4 (floats of four bits)",
    "modelopt": "ModelOpt",
    "bitsandbytes": "bitsandbytes",
    "nvfp4-pack-quantized": "NVFP4 (floats of four bits)",
    "mxfp4-pack-quantized": "MXFP4 (floats of four bits)",
    "pack-quantized": "packed integers, as GPTQ's and AWQ's",
    "int-quantized": "integers of eight bits",
    "marlin-24": "integers, sparse",
}
_FLOAT_FORMATS = {"float-quantized", "naive-quantized"}


DYNAMIC = "dynamic"
_QUANTISED = {Quant.W8A16: "not quantised", Quant.W8A8: "quantised by token"}


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """A scheme describes FP8 weights as a config declares them.

    ``block`` is the rows and columns of one scale, if scales are of blocks. ``activations`` is how
    the checkpoint's activations were meant to be quantised: ``dynamic`` if every token's are, when
    it comes, by the same columns as the weights. Weight-only products leave them alone.
    """

    method: str
    block: tuple[int, int] | None
    activations: str

    def words(self, quant: Quant) -> str:
        """Return the scheme in words, as ``inspect`` prints it, and the mode that it is run in."""
        scales = "channels or tensors"
        if self.block is not None:
            scales = f"blocks of {self.block[0]} x {self.block[1]}"
        return (
            f"{self.method}, e4m3 with scales of {scales}, declares {self.activations} "
            f"activation quantisation, run as {quant} (activations are {_QUANTISED[quant]})"
        )

    def check_w8a8(self, kind: str) -> None:
        """Check that W8A8 quantises activations as the checkpoint declares.

        Raise ``UnsupportedModelError`` if not. ``kind`` is the name of the model.
        """
        if self.activations != DYNAMIC:
            raise UnsupportedModelError(
                f"--quant w8a8: {kind} declares {self.activations} activation quantisation, and "
                "w8a8 quantises each token by its own largest value. Use --quant w8a16"
            )


def read_scheme(config: PretrainedConfig, kind: str) -> Fp8Scheme | None:
    """Return the FP8 scheme that ``config`` declares, or None for plain weights.

    ``kind`` is the name of the model. Raise ``UnsupportedModelError`` for any other quantisation,
    by its name.
    """
    stated = next(filter(None, (getattr(each, FIELD, None) for each in _parts(config))), None)
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        stated = stated.to_dict()
    return scheme_of(stated, kind)


def forget_scheme(config: PretrainedConfig) -> None:
    """Take the quantisation out of ``config``, in place.

    So transformers makes plain modules.
    """
    for each in _parts(config):
        if hasattr(each, FIELD):
            delattr(each, FIELD)


def _parts(config: PretrainedConfig) -> tuple[PretrainedConfig, ...]:
    return config, config.get_text_config()


def scheme_of(stated: Mapping[str, Any], kind: str) -> Fp8Scheme:
    """Return the FP8 scheme of a ``quantization_config``.

    Raise ``UnsupportedModelError`` for any other quantisation.
    """
    method = str(stated.get("quant_method", "unknown"))
    if method == "fp8":
        return _fine_grained(stated, kind)
    if method == "compressed-tensors":
        return _compressed(stated, kind)
    algorithm = str(stated.get("quant_algo", "")).lower()
    _refuse(kind, method, _NAMES.get(algorithm) or _NAMES.get(method))


def _refuse(kind: str, method: str, name: str | None) -> NoReturn:
    called = "" if name is None else f": {name}"
    raise UnsupportedModelError(
        f"MODEL: {kind} is quantised (quant_method {method}){called}. {WORKS}"
    )


def _fine_grained(stated: Mapping[str, Any], kind: str) -> Fp8Scheme:
    number_format = stated.get("fmt", "e4m3")
    if number_format not in ("e4m3", "float8_e4m3fn"):
        _refuse(kind, "fp8", f"numbers of format {number_format}")
    block = stated.get("weight_block_size")
    activations = str(stated.get("activation_scheme", DYNAMIC))
    return Fp8Scheme("fp8", _checked_block(block, kind), activations)


def _compressed(stated: Mapping[str, Any], kind: str) -> Fp8Scheme:
    method = "compressed-tensors"
    stored = str(stated.get("format"))
    groups = stated.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = [each.get("weights") or {} for each in groups if isinstance(each, Mapping)]
    are_floats = all((each.get("type"), each.get("num_bits")) == ("float", 8) for each in weights)
    if stored not in _FLOAT_FORMATS or not weights or not are_floats:
        _refuse(kind, method, _NAMES.get(stored, f"format {stored}"))
    blocks = [each.get("block_structure") for each in weights if each.get("strategy") == "block"]
    block = _checked_block(blocks[0], kind) if blocks else None
    declared = [_declared(each.get("input_activations") or {}, block) for each in groups]
    odd = (each for each in declared if each != DYNAMIC)
    return Fp8Scheme(method, block, next(odd, DYNAMIC))


def _declared(inputs: Mapping[str, Any], block: tuple[int, int] | None) -> str:
    """Return how compressed-tensors' ``input_activations`` are quantised."""
    if not inputs:
        return "no"
    if not inputs.get("dynamic"):
        return "static"
    own = ("token", None) if block is None else ("group", block[1])
    strategy = str(inputs.get("strategy", own[0]))
    is_known = (strategy, inputs.get("group_size")) == own
    is_fp8 = (inputs.get("type", "float"), inputs.get("num_bits", 8)) == ("float", 8)
    return DYNAMIC if is_known and is_fp8 else f"other {DYNAMIC} ({strategy})"


def _checked_block(block: object, kind: str) -> tuple[int, int] | None:
    if block is None:
        return None
    sizes = tuple(block) if isinstance(block, list | tuple) else ()
    if len(sizes) == 2 and all(isinstance(n, int) and n > 0 and n & (n - 1) == 0 for n in sizes):
        return sizes[0], sizes[1]
    raise UnsupportedModelError(
        f"MODEL: {kind}: {FIELD}: weight_block_size {block}: must be two powers of two, "
        "as [128, 128]"
    )
