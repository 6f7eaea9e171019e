"""Read how SGLang's line drafts: its algorithm, its lengths and its trees."""

from pathlib import Path

from cgbench.errors import BadInputError
from cgbench.inputs import parse_json, read_text, shown
from cgbench.planning.draft_schedule import DraftSchedule, adaptive, from_sets
from cgbench.planning.launch_lines.option_reader import Options
from cgbench.planning.plan_request import MAX_PLANNED_SPEC_TOKENS, Drafting

ALGORITHM = "--speculative-algorithm"

_LENGTHS = (
    "--speculative-num-steps",
    "--speculative-eagle-topk",
    "--speculative-num-draft-tokens",
    "--speculative-adaptive",
)

# The steps, top-k and draft tokens that most architectures get if none is given.
_AUTO = (3, 1, 4)

_WITHOUT_MODEL = {"NGRAM"}
_PARALLEL = {"DFLASH", "DSPARK", "UNO"}
_CHAINS = {"EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "FROZEN_KV_MTP"}

_NGRAM_TOKENS = 12
_BLOCK_TOKENS = 16


def verified(options: Options) -> tuple[int, list[str]]:
    """Return the positions verified per request, and warnings about them."""
    algorithm = (options.text(ALGORITHM) or "").upper()
    if not algorithm:
        lengths = [name for name in _LENGTHS if name in options]
        return 1, [f"{name}: drafts nothing without {ALGORITHM}" for name in lengths]
    most = MAX_PLANNED_SPEC_TOKENS
    steps = options.whole("--speculative-num-steps", most=most)
    topk = options.whole("--speculative-eagle-topk")
    tokens = options.whole("--speculative-num-draft-tokens", most=most + 1)
    if options.is_on("--speculative-adaptive") and steps is None:
        return (adaptive_schedule(options, 1).first_length or 0) + 1, []
    if algorithm in _PARALLEL | _WITHOUT_MODEL:
        return _of_a_block(options, algorithm, tokens)
    warnings = []
    if algorithm not in _CHAINS:
        warnings.append(f"{ALGORITHM} {shown(algorithm)}: not understood, planned as EAGLE")
    if steps is None:
        if topk or tokens:
            raise BadInputError("--speculative-num-steps: give it with the two other lengths")
        steps, topk, tokens = _AUTO
        warnings.append(
            "--speculative-num-steps: taken as 3, which Llama's and Grok's models exceed"
        )
    if tree_width(options) == 1:
        return steps + 1, warnings
    if tokens is None:
        raise BadInputError("--speculative-num-draft-tokens: needed with --speculative-eagle-topk")
    warnings.append(
        f"--speculative-eagle-topk {topk}: a tree. A draft step runs {topk} tokens a request"
    )
    return tokens, warnings


def tree_width(options: Options) -> int:
    """Return the tokens that a request runs in a draft step: above 1 only where a tree is drafted.

    Lengths that the engine replaces, and drafts that are no chain's, make no tree.
    """
    algorithm = (options.text(ALGORITHM) or "").upper()
    is_chained = bool(algorithm) and algorithm not in _PARALLEL | _WITHOUT_MODEL
    steps, topk = "--speculative-num-steps", "--speculative-eagle-topk"
    return (options.whole(topk) or 1) if is_chained and steps in options else 1


def drafting(options: Options) -> Drafting:
    """Return how the drafts of the line's algorithm come about."""
    algorithm = (options.text(ALGORITHM) or "").upper()
    if algorithm in _WITHOUT_MODEL:
        return Drafting.WITHOUT_MODEL
    return Drafting.PARALLEL if algorithm in _PARALLEL else Drafting.CHAIN


def adaptive_schedule(options: Options, max_batch_size: int) -> DraftSchedule:
    """Return the lengths by batch size of ``--speculative-adaptive``, or of its own file."""
    steps = options.whole("--speculative-num-steps")
    name = options.text("--speculative-adaptive-config")
    if name is None:
        return adaptive(max_batch_size, steps)
    label = f"--speculative-adaptive-config {name}"
    text = read_text(label, Path(name), 1_000_000)
    return from_sets(label, parse_json(label, text), max_batch_size, steps)


def _of_a_block(options: Options, algorithm: str, tokens: int | None) -> tuple[int, list[str]]:
    """Return the same if all drafts are made at once. The newest token is one of the block."""
    drafts = options.whole("--speculative-dspark-block-size", most=MAX_PLANNED_SPEC_TOKENS)
    if algorithm == "DSPARK" and drafts:
        return drafts + 1, []
    if tokens:
        return tokens, []
    taken = _NGRAM_TOKENS if algorithm in _WITHOUT_MODEL else _BLOCK_TOKENS
    return taken, [f"--speculative-num-draft-tokens: taken as {taken}"]
