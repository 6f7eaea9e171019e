"""Find GGUF targets and load their tokenizers.

transformers reads and dequantises the files. What it leaves to mend is mended here.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GgufConfig, PreTrainedTokenizerBase

from cgbench.errors import ModelError
from cgbench.inputs import JsonObject

# llama.cpp's names of pre-tokenizers that transformers does not rebuild.
_DIGIT_BY_DIGIT = {"smollm"}


def find_gguf(ref: str) -> Path | None:
    """Return the GGUF file that ``ref`` is, or the only one in a folder without safetensors.

    Return None if there is none. Raise ``ModelError`` if there are several, or if the packages to
    read it are missing.
    """
    path = Path(ref)
    if path.suffix == ".gguf" and path.is_file():
        return _readable(path)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelError(f"MODEL {ref}: holds several GGUF files ({names}). Give one of them")
    return _readable(files[0]) if files else None


def _readable(file: Path) -> Path:
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(
            f"MODEL {file.name}: GGUF needs {' and '.join(missing)}: pip install 'cgbench[gguf]'"
        )
    return file


class GgufKeywords(TypedDict, total=False):
    """This class types the keywords that ``from_pretrained`` takes for a GGUF file."""

    gguf_file: str
    quantization_config: GgufConfig


def gguf_keywords(file: Path | None) -> GgufKeywords:
    """Return the keywords that ``from_pretrained`` needs for a GGUF file, or none without a
    file."""
    if file is None:
        return {}
    return {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}


def load_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer beside the file if there is one, else the one inside it, mended.

    transformers drops the end token's id and the splitting of digits, which the file states.
    """
    if (file.parent / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    stated = _stated(file)
    eos = stated.get("tokenizer.ggml.eos_token_id")
    if eos is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(int(eos))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if stated.get("tokenizer.ggml.pre") in _DIGIT_BY_DIGIT:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


def _stated(file: Path) -> JsonObject:
    """Return the fields of the file that describe its tokenizer."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.pre")
    fields = {name: reader.get_field(name) for name in names}
    return {name: field.contents() for name, field in fields.items() if field is not None}
