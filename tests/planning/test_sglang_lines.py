"""SGLang's line in detail: its algorithms, its prefill graphs, and what switches graphs off."""

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import plan
from cgbench.planning.gpus import GPUS
from cgbench.planning.launch_lines import Launch, read_launch
from cgbench.planning.phases import PhasePlan, phases_of


def read(line: str, gpu: str | None = "h200") -> Launch:
    return read_launch(line, None, GPUS[gpu] if gpu else None)


def phases(found: Launch) -> PhasePlan:
    return phases_of(found.request, plan(found.request))


SGLANG = "python -m sglang.launch_server --model-path M --max-running-requests 8 "


@pytest.mark.parametrize(
    ("words", "k", "phases_planned", "warning"),
    [
        ("NGRAM --speculative-num-draft-tokens 8", 7, 1, None),
        ("NGRAM", 11, 1, "--speculative-num-draft-tokens: taken as 12"),
        ("DFLASH --speculative-dflash-block-size 8", 7, 2, None),
        ("DSPARK --speculative-dspark-block-size 7", 7, 2, None),
        ("DSPARK", 15, 2, "--speculative-num-draft-tokens: taken as 16"),
        ("STANDALONE --speculative-num-steps 2", 2, 3, None),
        ("MADE_UP --speculative-num-steps 2", 2, 3, "MADE_UP: not understood, planned as EAGLE"),
    ],
)
def test_sglangs_algorithms(words: str, k: int, phases_planned: int, warning: str | None) -> None:
    found = read(f"{SGLANG}--speculative-algorithm {words}")
    assert found.request.spec_tokens == k
    assert len(phases(found).phases) == phases_planned
    assert [warning in line for line in found.warnings] == ([True] if warning else [])


def test_lengths_without_an_algorithm_draft_nothing() -> None:
    found = read(f"{SGLANG}--speculative-num-steps 3")
    assert found.request.spec_tokens == 0
    assert found.warnings == (
        "--speculative-num-steps: drafts nothing without --speculative-algorithm",
    )


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ("", "50 graphs, 4 to 4096 tokens, by the default --chunked-prefill-size"),
        ("--chunked-prefill-size 32", "8 graphs, 4 to 32 tokens, by --chunked-prefill-size"),
        ("--cuda-graph-max-bs-prefill 16", "4 graphs, 4 to 16 tokens"),
        ("--cuda-graph-bs-prefill 64 8", "2 graphs, 8 to 64 tokens"),
        ("""--cuda-graph-config '{"prefill": {"max_bs": 16}}'""", "4 graphs, 4 to 16 tokens"),
        ("--disable-decode-cuda-graph --chunked-prefill-size 8", "2 graphs, 4 to 8 tokens, by"),
        ("--disable-prefill-cuda-graph", None),
        ("--disable-cuda-graph", None),
        ("--disable-cuda-graph --cuda-graph-backend-prefill full --cuda-graph-bs-prefill 8", "1 g"),
        ("""--cuda-graph-config '{"prefill": {"backend": "disabled"}}'""", None),
        ("--chunked-prefill-size -1", None),
    ],
)
def test_sglangs_prefill_graphs_are_those_that_the_line_asks_for(
    words: str, note: str | None
) -> None:
    notes = [note for note in read(SGLANG + words, None).notes if note.startswith("prefill: ")]
    assert [note is not None and f"prefill: {note}" in each for each in notes] == (
        [True] if note else []
    )


@pytest.mark.parametrize(
    ("words", "has_decode", "has_prefill"),
    [
        ("--attention-backend fa3", True, True),
        ("--attention-backend torch_native", False, False),
        ("--deepep-mode low_latency", True, True),
        ("--deepep-mode normal", False, False),
        ("--disaggregation-mode prefill", False, True),
        ("--disaggregation-mode decode", True, False),
        ("--disaggregation-mode prefill --cuda-graph-backend-decode full", True, True),
        ("--debug-tensor-dump-output-folder /tmp --cuda-graph-backend-decode full", False, False),
    ],
)
def test_what_switches_sglangs_graphs_off(words: str, has_decode: bool, has_prefill: bool) -> None:
    found = read(SGLANG + words)
    assert bool(phases(found).plan.buckets) == has_decode
    assert any(note.startswith("prefill: ") for note in found.notes) == has_prefill


def test_a_tree_of_more_drafts_than_are_planned_is_refused_by_its_own_name() -> None:
    words = "--speculative-algorithm EAGLE --speculative-num-steps 5 --speculative-eagle-topk 8 "
    with pytest.raises(
        BadInputError, match="--speculative-num-draft-tokens 64: must be at most 33"
    ):
        read(f"{SGLANG}{words}--speculative-num-draft-tokens 64")


TREE = "--speculative-num-steps 3 --speculative-eagle-topk 4 --speculative-num-draft-tokens 16"


def test_a_tree_runs_its_width_in_each_later_draft_step() -> None:
    found = read(f"{SGLANG}--speculative-algorithm EAGLE {TREE}")
    [warning] = found.warnings
    assert warning.endswith("a tree. A draft step runs 4 tokens a request")
    verify, first, rest = phases(found).phases
    assert (verify.query_len, first.query_len, rest.query_len) == (16, 16, 4)
    assert [each.num_tokens for each in rest.buckets] == [4 * n for n in range(1, 9)]


@pytest.mark.parametrize(
    "words",
    [
        f"--speculative-algorithm NGRAM {TREE}",
        f"--speculative-algorithm DFLASH {TREE}",
        TREE,
        f"--speculative-algorithm EAGLE {TREE.replace('topk 4', 'topk 1')}",
    ],
)
def test_what_drafts_no_tree_has_no_width(words: str) -> None:
    assert read(SGLANG + words).request.tree_width == 1
