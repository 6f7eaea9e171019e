"""vLLM's line in detail: modes, levels, methods of drafting, budgets, and the table by phase."""

import json
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import plan
from cgbench.planning.gpus import GPUS
from cgbench.planning.launch_lines import Launch, read_launch
from cgbench.planning.phases import PhasePlan, phases_of
from cgbench.planning.plan_request import CaptureMode, Drafting
from cgbench.words import Phase

TABLE = json.loads(Path(__file__).with_name("vllm_phases.json").read_text())

# The rule of the list is defined for the others too, but with fewer tokens than requests the engine
# does not start.
STARTED = [row for row in TABLE if row.get("budget", 8192) >= row["max_num_seqs"]]


def name_of(row: dict[str, Any]) -> str:
    return f"{row['max_num_seqs']}-k{row['spec_tokens']}-{len(row['tokens'])}"


def read(words: str, gpu: str | None = None) -> Launch:
    return read_launch(f"vllm serve M {words}", None, GPUS[gpu] if gpu else None)


def in_phases(found: Launch) -> PhasePlan:
    return phases_of(found.request, plan(found.request))


def line_of(row: dict[str, Any]) -> str:
    words = [f"--max-num-seqs {row['max_num_seqs']}"]
    words.append(f"--max-num-batched-tokens {row.get('budget', 8192)}")
    if k := row["spec_tokens"]:
        words.append(f"-sc.method=mtp -sc.num_speculative_tokens={k}")
    if listed := row.get("listed"):
        words.append(f"--cudagraph-capture-sizes {' '.join(map(str, listed))}")
    if cap := row.get("cap"):
        words.append(f"-cc.max_cudagraph_capture_size={cap}")
    if row.get("interactivity"):
        words.append("--performance-mode interactivity")
    return " ".join(words)


@pytest.mark.parametrize("row", STARTED, ids=name_of)
def test_the_engines_table_by_launch_lines(row: dict[str, Any]) -> None:
    found = read(line_of(row), "b200" if row.get("ceiling") == 1024 else "h200")
    phases = in_phases(found)
    assert found.warnings == ()
    assert list(phases.mixed_tokens) == row["tokens"]
    assert list(phases.of(Phase.VERIFY).batch_sizes) == row["verify"]
    if "draft_rest" in row:
        assert list(phases.of(Phase.DRAFT_REST).batch_sizes) == row["draft_rest"]


def test_fewer_tokens_than_requests_are_refused_as_the_engine_does() -> None:
    refused = [row for row in TABLE if row not in STARTED]
    assert refused
    for row in refused:
        with pytest.raises(BadInputError, match=r"vllm-0\.33 refuses max_num_seqs"):
            read(line_of(row))


FULL, DECODE, PIECES, NONE = (
    CaptureMode.FULL,
    CaptureMode.DECODE_ONLY,
    CaptureMode.PIECES,
    CaptureMode.NONE,
)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("", FULL),
        ("-O3", FULL),
        ("-O=1", PIECES),
        ("-O 0", NONE),
        ("-O0 -cc.cudagraph_mode=FULL_DECODE_ONLY", DECODE),
        ("-O0 -cc.cudagraph_mode=FULL_AND_PIECEWISE", DECODE),
        ("-cc.mode=0", DECODE),
        ("-cc.mode=none -cc.cudagraph_mode=PIECEWISE", NONE),
        ("-cc.mode=DYNAMO_TRACE_ONCE", DECODE),
        ("-cc.mode=1", NONE),
        ("-cc.mode=3 -cc.cudagraph_mode=piecewise", PIECES),
        ("--enforce-eager -cc.cudagraph_mode=FULL_DECODE_ONLY", NONE),
        ("--no-enforce-eager", FULL),
    ],
)
def test_which_graphs_are_left(words: str, mode: CaptureMode) -> None:
    """Pieces need vLLM's own compilation; an explicit mode comes before the level's."""
    assert read(words).request.capture_mode is mode


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("-O7", "-O 7: must be 0, 1, 2 or 3"),
        ("-O.cudagraph_mode=NONE", "must be 0, 1, 2 or 3"),
        ("-cc.mode=FAST", "-cc mode FAST: must be 0 to 3, or one of"),
        ("-cc.cudagraph_mode=FULL", "cudagraph_mode FULL: is not planned"),
        ("-cc.cudagraph_mode", "-cc.cudagraph_mode: needs a value"),
        ("-cc '{\"mode\": 3, // fast\n}'", "is not JSON"),
        ("-cc '{\"mode\": 3,}'", "is not JSON"),
        ("-sc.method=[] -sc.num_speculative_tokens=1", "-sc method []: must be a"),
        ("-sc.model={} -sc.num_speculative_tokens=1", "-sc model {}: must be a"),
        ("-sc.num_speculative_tokens=33", "num_speculative_tokens 33: must be at most 32"),
    ],
)
def test_what_vllm_or_a_plan_refuses(words: str, reason: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read(words)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def drafts(method: str, more: str = "") -> Launch:
    words = f'"method": "{method}", "num_speculative_tokens": 3{more}'
    return read(f"--max-num-seqs 4 --speculative-config '{{{words}}}'")


@pytest.mark.parametrize(
    ("method", "more", "drafting"),
    [
        ("mtp", "", Drafting.CHAIN),
        ("qwen3_next_mtp", "", Drafting.CHAIN),
        ("eagle3", "", Drafting.CHAIN),
        ("dflash", "", Drafting.PARALLEL),
        ("dflash", ', "parallel_drafting": true', Drafting.PARALLEL),
        ("draft_model", "", Drafting.WITHOUT_GRAPHS),
        ("eagle3", ', "parallel_drafting": true', Drafting.WITHOUT_GRAPHS),
        ("suffix", "", Drafting.WITHOUT_MODEL),
    ],
)
def test_how_each_method_drafts(method: str, more: str, drafting: Drafting) -> None:
    found = drafts(method, more)
    assert (found.request.drafting, found.warnings) == (drafting, ())


def test_a_draft_model_of_its_own_runs_without_graphs() -> None:
    """Its speculator captures none in 0.33, so every batch drafts eager."""
    found = in_phases(drafts("draft_model"))
    verify, first, rest = found.phases
    assert verify.batch_sizes == (1, 2, 4)
    assert first.batch_sizes == rest.batch_sizes == ()
    assert found.eager_batch_sizes == (1, 2, 3, 4)
    assert "no graph" in first.note


def test_what_of_the_drafts_is_not_understood_is_listed() -> None:
    assert drafts("made_up").warnings == (
        "--speculative-config method made_up: not understood, planned as mtp",
    )
    assert drafts("mtp", ', "num_drafts": 3, "enable_adaptive_verification": true').warnings == (
        "--speculative-config num_drafts: not understood",
        "--speculative-config enable_adaptive_verification: not planned (verify has graphs for "
        "any number of drafts up to k)",
    )
    [warning] = read("-sc.model=org/model -sc.num_speculative_tokens=2").warnings
    assert warning.startswith("-sc method: is missing, planned as a head")


@pytest.mark.parametrize(
    "words",
    [
        "--attention-backend FLASHINFER",
        "--kv-transfer-config '{}'",
        "--disable-chunked-prefill",
        "--max-num-active-seqs 3",
    ],
)
def test_an_option_that_may_change_the_graphs_is_named(words: str) -> None:
    [warning] = read(words).warnings
    assert warning.startswith(words.partition(" ")[0]) and ": not planned (" in warning


def test_an_option_that_is_switched_off_is_read_in_silence() -> None:
    assert read("--no-trust-remote-code --no-enable-lora --disable-prefix-caching").warnings == ()


@pytest.mark.parametrize("words", ["--speculative-config None", "--max-num-seqs ''", "-sc ''"])
def test_none_means_the_default(words: str) -> None:
    assert read(words).request == read("").request


def test_a_dotted_number_may_have_a_unit() -> None:
    assert read("-cc.max_cudagraph_capture_size=1k").request.graph_maximum == 1000


@pytest.mark.parametrize(
    ("words", "budget", "most"),
    [
        ("", 16_384, 2_048),
        ("--max-num-seqs 64", 16_384, 64),
        ("--max-num-batched-tokens 1K", 1_024, 1_024),
    ],
)
def test_throughput_doubles_the_defaults(words: str, budget: int, most: int) -> None:
    found = read(f"--performance-mode throughput {words}", "h200")
    request = found.request
    assert (request.max_num_batched_tokens, request.max_batch_size) == (budget, most)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("assigned", "warning"),
    [
        ("VLLM_USE_V2_MODEL_RUNNER=1", None),
        ("VLLM_USE_V2_MODEL_RUNNER=0", "runner V1 drafts without full graphs"),
        ("TORCH_COMPILE_DISABLE=1", "without compilation no batch runs in pieces"),
        ("VLLM_LOGGING_LEVEL=DEBUG", None),
    ],
)
def test_variables_that_change_the_graphs_are_named(assigned: str, warning: str | None) -> None:
    found = read_launch(f"{assigned} vllm serve M", None, None).warnings
    assert found == ((f"{assigned}: not planned ({warning})",) if warning else ())


def test_a_schedule_is_ignored_with_data_parallelism_as_the_engine_does() -> None:
    more = ', "num_speculative_tokens_per_batch_size": [[1, 4, 3], [5, 8, 0]]'
    assert drafts("mtp", more).schedule is not None
    words = f'"method": "mtp", "num_speculative_tokens": 3{more}'
    found = read(f"-dp 2 -sc '{{{words}}}'")
    assert found.schedule is None
    assert found.warnings == (
        "-dp 2: not planned (a rank pads to the largest batch of all ranks)",
        "-sc num_speculative_tokens_per_batch_size: the engine ignores it with data parallelism",
    )
