"""Load a checkpoint's tokenizer, or find the reason why there is none."""

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cgbench.errors import ModelError, first_line
from cgbench.inputs import parse_json, read_text
from cgbench.models.checkpoint import is_folder
from cgbench.models.gguf import load_gguf_tokenizer
from cgbench.models.loading_plan import LoadingPlan

MAX_TOKENIZER_BYTES = 256 << 20
"""A tokenizer's file may have at most this many bytes.

That is ten times the largest public ``tokenizer.json``.
"""

# The names of tokenizers' files, in JSON and otherwise.
_JSON_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json"),
)
_OTHER_FILES = ("tokenizer.model", "spiece.model", "vocab.txt", "merges.txt", "*.tiktoken")


def read_tokenizer(plan: LoadingPlan) -> tuple[PreTrainedTokenizerBase | None, str]:
    """Return the tokenizer and an empty text, or None and the reason why there is none.

    The reason is one line with the file. The caller decides whether to refuse it, because random
    prompts need no tokenizer. Code that a checkpoint ships is never run.
    """
    request = plan.request
    if request.preset is not None:
        return None, f"{request.ref} has no tokenizer"
    ref, files = request.path, ""
    try:
        files = ", ".join(_tokenizer_files(ref))
        if not files and is_folder(ref) and plan.gguf_file is None:
            return None, f"MODEL {request.ref}: the folder has no tokenizer files"
        return _read(plan), ""
    except ModelError as error:
        return None, str(error)
    # The file is at fault, whatever the tokenizer's own library raises.
    except Exception as error:
        named = f" ({files})" if files else ""
        return None, f"MODEL {request.ref}: its files{named} make no tokenizer: {first_line(error)}"


def _read(plan: LoadingPlan) -> PreTrainedTokenizerBase:
    if plan.gguf_file is not None:
        return load_gguf_tokenizer(plan.gguf_file)
    return AutoTokenizer.from_pretrained(plan.request.path, trust_remote_code=False)


def _tokenizer_files(ref: str) -> Iterator[str]:
    """Yield the names of a folder's tokenizer files.

    Raise ``ModelError`` for one that should be a JSON object and is none.
    """
    folder = Path(ref) if is_folder(ref) else None
    for file in sorted(folder.iterdir()) if folder else ():
        if file.name in _JSON_FILES:
            where = f"MODEL {file}"
            text = read_text(where, file, MAX_TOKENIZER_BYTES, ModelError)
            if not isinstance(parse_json(where, text, ModelError), dict):
                raise ModelError(f"{where}: must be an object")
            yield file.name
        elif any(file.match(pattern) for pattern in _OTHER_FILES):
            yield file.name
