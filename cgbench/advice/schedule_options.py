"""Write a schedule of k as the options of engines, with the capture list that serves it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cgbench.advice.tiers import KTier
from cgbench.planning import PlanRequest, plan

POLICY = "scaled"
ADAPTIVE_FILE = "adaptive.json"


@dataclass(frozen=True, slots=True)
class EngineOption:
    """An ``EngineOption`` is a snippet to paste into one engine's launch line or configuration.

    ``note`` adds what the snippet does not show by itself.
    """

    engine: str
    text: str
    note: str


def options_for(tiers: Sequence[KTier]) -> tuple[EngineOption, ...]:
    """Return the options for vLLM, TensorRT-LLM and SGLang, or nothing if no tier drafts.

    An engine that would refuse the schedule is left out.
    """
    if not any(tier.k for tier in tiers):
        return ()
    made = (_vllm(tiers), _tensorrt_llm(tiers), _sglang(tiers))
    refused = refusals_of(tiers)
    return tuple(option for option in made if option.engine not in refused)


def refusals_of(tiers: Sequence[KTier]) -> dict[str, str]:
    """Return why an engine would refuse the schedule, by the engine's name.

    TensorRT-LLM wants its smallest batches to draft max_draft_len
    (``DecodingBaseConfig.validate_draft_len_schedule_and_sort`` of 1.3).
    """
    if not tiers or tiers[0].k == _longest(tiers):
        return {}
    return {
        "tensorrt-llm": "the engine takes only schedules whose smallest batches draft the longest "
        f"k, and 1 request drafts k = {tiers[0].k} here, not {_longest(tiers)}"
    }


def batch_sizes_of(tier: KTier) -> tuple[int, ...]:
    """Return the captured batch sizes that the tier's requests run in.

    The tier's last batch size is one of them. A batch that is padded past it would look for a graph
    of the next tier's k.
    """
    found = plan(PlanRequest(spec_tokens=tier.k, max_batch_size=tier.last, policy=POLICY))
    buckets = (found.bucket_for(n) for n in range(tier.first, tier.last + 1))
    return tuple(sorted({bucket.batch_size for bucket in buckets if bucket} | {tier.last}))


def _requests(tiers: Sequence[KTier]) -> list[int]:
    return sorted({size for tier in tiers for size in batch_sizes_of(tier)})


def _tokens(tiers: Sequence[KTier]) -> list[int]:
    """Return n * (k + 1) tokens of every tier's sizes, and n, because drafts 2..k run one a
    request.
    """
    sizes = [(size, tier.k) for tier in tiers for size in batch_sizes_of(tier)]
    return sorted({tokens for n, k in sizes for tokens in (n * (k + 1), n)})


def _longest(tiers: Sequence[KTier]) -> int:
    return max(tier.k for tier in tiers)


def _vllm(tiers: Sequence[KTier]) -> EngineOption:
    config: dict[str, object] = {"method": "mtp", "num_speculative_tokens": _longest(tiers)}
    if len(tiers) > 1:
        ranges = [[tier.first, tier.last, tier.k] for tier in tiers]
        config["num_speculative_tokens_per_batch_size"] = ranges
    tokens, last = _tokens(tiers), tiers[-1]
    sizes = {"cudagraph_capture_sizes": tokens}
    # A longer tier's graphs hold more requests of a shorter one.
    most = tokens[-1] // (last.k + 1)
    above = f" those above {most}" if most > last.last else ""
    return EngineOption(
        "vllm",
        f"--speculative-config '{json.dumps(config)}' --compilation-config '{json.dumps(sizes)}'",
        f"capture sizes count tokens. Batches above {last.last} go on with k={last.k},{above} "
        "without a graph",
    )


def _tensorrt_llm(tiers: Sequence[KTier]) -> EngineOption:
    schedule = ", ".join(f"{tier.last}: {tier.k}" for tier in tiers)
    drafts = f"  max_draft_len: {_longest(tiers)}"
    text = [
        "speculative_config:",
        "  decoding_type: MTP",
        drafts,
        *([f"  draft_len_schedule: {{{schedule}}}"] if len(tiers) > 1 else []),
        "cuda_graph_config:",
        "  enable_padding: true",
        f"  batch_sizes: {_requests(tiers)}",
    ]
    above = (
        f"Batches above {tiers[-1].last} do not draft and have no graph"
        if len(tiers) > 1
        else "There is no schedule"
    )
    return EngineOption("tensorrt-llm", "\n".join(text), f"batch sizes count requests. {above}")


def _sglang(tiers: Sequence[KTier]) -> EngineOption:
    sizes = " ".join(map(str, _requests(tiers)))
    # SGLang begins with this many drafts, and refuses to begin with none.
    steps = tiers[0].k or _longest(tiers)
    adaptive = f"--speculative-adaptive --speculative-adaptive-config {ADAPTIVE_FILE} "
    text = (
        f"--speculative-algorithm NEXTN --speculative-num-steps {steps} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {steps + 1} {adaptive if len(tiers) > 1 else ''}"
        f"--cuda-graph-bs-decode {sizes}"
    )
    if len(tiers) == 1:
        return EngineOption("sglang", text, "batch sizes count requests")
    sets = {str(tier.first): {"candidate_steps": [tier.k]} for tier in tiers}
    last = tiers[-1]
    note = (
        f"batch sizes count requests. Batches above {last.last} go on with k={last.k}, without a "
        "graph"
    )
    return EngineOption("sglang", f"{text}\n# {ADAPTIVE_FILE}\n{json.dumps(sets)}", note)
