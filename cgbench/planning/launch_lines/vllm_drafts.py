"""Read vLLM's ``--speculative-config``: how many drafts, and how they come about."""

from collections.abc import Iterator

from cgbench.errors import BadInputError
from cgbench.inputs import JsonObject, shown
from cgbench.planning.draft_schedule import from_ranges
from cgbench.planning.launch_lines.option_reader import whole
from cgbench.planning.launch_lines.reading import Reading
from cgbench.planning.plan_request import MAX_PLANNED_SPEC_TOKENS, Drafting

SPECULATIVE = "--speculative-config"
_BY_BATCH_SIZE = "num_speculative_tokens_per_batch_size"

_PARALLEL = {"dflash", "dspark", "medusa", "mlp_speculator"}

_LOOKED_UP = {"ngram", "ngram_gpu", "suffix", "extract_hidden_states"}

_HEADS = {"mtp", "eagle", "eagle3"}

# Keys of --speculative-config that change no graph.
_DRAFT_KEYS = {
    *("method", "model", "num_speculative_tokens", _BY_BATCH_SIZE),
    *("parallel_drafting", "draft_tensor_parallel_size", "quantization", "moe_backend"),
    *("kv_cache_dtype", "max_model_len", "revision", "code_revision", "prompt_lookup_max"),
    *("prompt_lookup_min", "suffix_decoding_max_tree_depth", "suffix_decoding_min_token_prob"),
    *("suffix_decoding_max_cached_requests", "suffix_decoding_max_spec_factor"),
    *("draft_load_config", "rejection_sample_method", "synthetic_acceptance_rates"),
    *("synthetic_acceptance_length", "use_local_argmax_reduction", "disable_eagle_block_drop"),
    *("disable_lookahead_block_hashes", "draft_lm_head_quantization"),
}

_UNPLANNED_DRAFT_KEYS = {
    "disable_padded_drafter_batch": "drafts run without padding",
    "enable_adaptive_verification": "verify has graphs for any number of drafts up to k",
    "enforce_eager": "the draft model may run without graphs",
    "attention_backend": "one without graphs leaves drafts eager",
    "use_heterogeneous_vocab": "runner V1 drafts without full graphs",
}


def spec_tokens(speculative: JsonObject) -> int:
    """Return k, which is 0 without a configuration.

    Raise ``BadInputError`` if the line leaves it to the draft model's own files.
    """
    if not speculative:
        return 0
    tokens = speculative.get("num_speculative_tokens")
    if tokens is None:
        raise BadInputError(
            f"{SPECULATIVE}: num_speculative_tokens is missing. The engine takes it from the draft "
            "model, which is not read here"
        )
    return whole(f"{SPECULATIVE} num_speculative_tokens", tokens, most=MAX_PLANNED_SPEC_TOKENS)


def drafting(speculative: JsonObject) -> Drafting:
    """Return how the method drafts, in runner V2 or in V1 for a method that V2 lacks."""
    method, model = _text(speculative, "method").lower(), _text(speculative, "model")
    if method in _LOOKED_UP or model in _LOOKED_UP:
        return Drafting.WITHOUT_MODEL
    if method in _PARALLEL:
        return Drafting.PARALLEL
    # Parallel drafts of other methods run on runner V1.
    is_eager = method in ("draft_model", "custom_class") or speculative.get("parallel_drafting")
    return Drafting.WITHOUT_GRAPHS if is_eager else Drafting.CHAIN


def said_of_drafts(speculative: JsonObject) -> Iterator[str]:
    """Yield a warning for each setting that the plan does not follow."""
    for key, value in speculative.items():
        if key in _UNPLANNED_DRAFT_KEYS and value not in (None, False):
            yield f"{SPECULATIVE} {key}: not planned ({_UNPLANNED_DRAFT_KEYS[key]})"
        elif key not in _DRAFT_KEYS | _UNPLANNED_DRAFT_KEYS.keys():
            yield f"{SPECULATIVE} {key}: not understood"
    method, model = _text(speculative, "method"), _text(speculative, "model")
    known = _HEADS | _PARALLEL | _LOOKED_UP | {"draft_model", "custom_class"}
    if not speculative or (not method and model in _LOOKED_UP):
        return
    if not method:
        yield (
            f"{SPECULATIVE} method: is missing, planned as a head (mtp, eagle), but a draft model "
            "of its own has no graphs"
        )
    elif method not in known and not method.endswith("_mtp"):
        yield f"{SPECULATIVE} method {shown(method)}: not understood, planned as mtp"


def _text(speculative: JsonObject, key: str) -> str:
    """Return a name in the object, which is empty if it is not given."""
    value = speculative.get(key)
    if not isinstance(value, str | None):
        raise BadInputError(f"{SPECULATIVE} {key} {shown(value)}: must be a name")
    return value or ""


def scheduled(reading: Reading, speculative: JsonObject, ranks: int) -> Reading:
    """Return ``reading`` with the draft lengths by batch size, if the line gives them.

    The engine ignores them with data parallelism, because several ranks could choose different
    ones.
    """
    label = f"{SPECULATIVE} {_BY_BATCH_SIZE}"
    ranges, longest = speculative.get(_BY_BATCH_SIZE), reading.request.spec_tokens
    if ranges is not None and ranks > 1:
        reading.warnings.append(f"{label}: the engine ignores it with data parallelism")
    elif ranges is not None:
        reading.schedule = lambda size: from_ranges(label, ranges, size, longest)
    return reading
