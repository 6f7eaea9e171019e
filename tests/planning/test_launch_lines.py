"""Lines that start engines, in the shapes that recipes and model cards have, and broken ones.

Each plan is worked out by hand from the engine's rule, or was printed by the engine's own code.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import plan
from cgbench.planning.gpus import GPUS
from cgbench.planning.launch_lines import (
    Launch,
    fastdeploy_line,
    harmless_options,
    read_launch,
    sglang_line,
    tensorrt_llm_line,
    vllm_line,
)
from cgbench.planning.phases import PhasePlan, phases_of
from cgbench.words import Phase

H200 = "h200"

MTP_YAML = """\
cuda_graph_config:
  enable_padding: true
  max_batch_size: 16
speculative_config:
  decoding_type: MTP
  num_nextn_predict_layers: 3
kv_cache_config:
  free_gpu_memory_fraction: 0.8
enable_attention_dp: false
"""

PLAIN_YAML = "cuda_graph_config: {}\nspeculative_config: {decoding_type: MTP, max_draft_len: 1}\n"

OFF_YAML = "cuda_graph_config: null\nmax_batch_size: 4\n"

LISTED_YAML = """\
cuda_graph_config: {batch_sizes: [1, 2, 4, 64], enable_padding: true}
max_batch_size: 32
"""

SCHEDULE_YAML = """\
cuda_graph_config: {batch_sizes: [1, 2, 4, 8], enable_padding: true}
max_batch_size: 8
speculative_config: {decoding_type: MTP, max_draft_len: 3, draft_len_schedule: {4: 3, 8: 1}}
"""

VLLM_YAML = """\
max-num-seqs: 6
compilation-config:
  cudagraph_capture_sizes: [4, 8, 16, 24]
speculative-config:
  method: mtp
  num_speculative_tokens: 3
trust-remote-code: true
"""

FILES = {
    "mtp.yaml": MTP_YAML,
    "plain.yml": PLAIN_YAML,
    "off.yaml": OFF_YAML,
    "listed.yaml": LISTED_YAML,
    "schedule.yaml": SCHEDULE_YAML,
    "rising.yaml": "speculative_config: {max_draft_len: 3, draft_len_schedule: {4: 1, 8: 3}}\n",
    "both.yaml": "speculative_config: {max_draft_len: 3, max_concurrency: 8, "
    "draft_len_schedule: {4: 3}}\n",
    "vllm.yaml": VLLM_YAML,
    "adaptive.json": '{"1": {"candidate_steps": [1, 3]}, "4": {"candidate_steps": [1]}}',
}


@dataclass(frozen=True)
class Case:
    """A line, and what its engine makes of it: drafts k, most requests S, and the batch sizes that
    have a graph in verify and in drafts 2..k."""

    line: str
    k: int
    most: int
    verify: tuple[int, ...]
    rest: tuple[int, ...] | None = None
    gpu: str | None = H200
    warns: tuple[str, ...] = ()


LINES = {
    "a recipe's MTP line": Case(
        "vllm serve deepseek-ai/DeepSeek-V3.1 --trust-remote-code --max-num-seqs 20 "
        """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'""",
        *(2, 20, (1, 2, 3, 4, 6, 8, 11, 14, 16, 19, 20), (1, 2, 3, 4, 6, 8, 12, 16)),
    ),
    "underscores, an equals sign, and a line cut by backslashes": Case(
        "vllm serve M \\\n  --max_num_seqs=8 \\\n"
        """  --speculative_config='{"method":"mtp","num_speculative_tokens":1}' \\\n"""
        "  --port 8001  # a comment",
        *(1, 8, (1, 2, 4, 8)),
    ),
    "dotted forms": Case(
        "vllm serve M --max-num-seqs 8 -sc.method=eagle3 -sc.num_speculative_tokens 3 "
        "-cc.cudagraph_capture_sizes=[4,8,32] -cc.cudagraph_mode=FULL_DECODE_ONLY",
        # 4 and 8 tokens are 1 and 2 requests of verify; drafts find 4 and 8.
        *(3, 8, (1, 2, 8), (4, 8)),
    ),
    "a list that is appended to": Case(
        "vllm serve M --max-num-seqs 4 -cc.cudagraph_capture_sizes+=1,2 "
        "-cc.cudagraph_capture_sizes+=4",
        *(0, 4, (1, 2, 4)),
    ),
    "a dotted form replaces the object that was given whole": Case(
        """vllm serve M --max-num-seqs 4 -cc '{"cudagraph_capture_sizes": [1]}' """
        "-cc.max_cudagraph_capture_size=2",
        *(0, 4, (1, 2)),
    ),
    "the user's own list: doubles and sizes over the budget dropped": Case(
        """vllm serve M --max-num-seqs 200 --max-num-batched-tokens 1k --spec-tokens 3 """
        "--spec-method mtp --cudagraph-capture-sizes 8 8 16 800 2000",
        # 800 tokens are 200 requests. 8 and 16 are drafts' sizes, 800 is above 200 requests.
        *(3, 200, (2, 4, 200), (8, 16)),
    ),
    "a ceiling alone turns the decode sizes off": Case(
        "vllm serve M --max-num-seqs 6 --max-cudagraph-capture-size 42 "
        """-sc '{"method": "mtp", "num_speculative_tokens": 6}'""",
        *(6, 6, (1, 2, 3, 4, 5), (1, 2, 4)),
    ),
    "the module, and the defaults of a small GPU": Case(
        "python -m vllm.entrypoints.openai.api_server --model M --dtype bfloat16",
        *(0, 256, (1, 2, 4, *range(8, 257, 8))),
        gpu="l40",
    ),
    "an image": Case(
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.33.0 --model M --max-num-seqs 3 "
        "--performance-mode interactivity",
        *(0, 3, (1, 2, 3)),
    ),
    "eager": Case("vllm serve M --enforce-eager --max-num-seqs 4", 0, 4, (), warns=("off",)),
    "vLLM's file": Case("vllm serve M --config vllm.yaml", 3, 6, (1, 2, 4, 6), (4,)),
    "what is not understood is listed, and what is not planned": Case(
        "VLLM_USE_V2_MODEL_RUNNER=0 vllm serve M --max-num-seqs 2 --enable-lora --made-up 3 x",
        *(0, 2, (1, 2)),
        warns=(
            "VLLM_USE_V2_MODEL_RUNNER=0: not planned",
            "--enable-lora: not planned",
            "--made-up 3 x",
        ),
    ),
    "SGLang's MTP line": Case(
        "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8 "
        "--trust-remote-code --speculative-algorithm EAGLE --speculative-num-steps 3 "
        "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4 --mem-fraction-static 0.8",
        # 48 requests run by default with drafts, of a list to 512.
        *(3, 48, (*range(1, 9), *range(10, 33, 2), 40, 44, 48)),
        rest=(*range(1, 9), *range(10, 33, 2), 40, 44, 48),
    ),
    "SGLang's lengths of its own": Case(
        "sglang serve --model-path M --speculative-algorithm NEXTN --max-running-requests 4",
        *(3, 4, (1, 2, 3, 4), (1, 2, 3, 4)),
        warns=("--speculative-num-steps: taken as 3",),
    ),
    "SGLang on a small GPU": Case(
        "python -m sglang.launch_server --model-path M --max-running-requests 100",
        *(0, 100, (1, 2, 4, 8, 12, 16, 24, 32)),
        gpu="l40",
    ),
    "SGLang's list, cut at the running requests, by the name before 0.5.23": Case(
        "python -m sglang.launch_server --model-path M --cuda-graph-bs 1 2 64 --port 30000 "
        "--max-running-requests 10",
        *(0, 10, (1, 2, 10)),
        warns=("--cuda-graph-bs: 0.5.23 names it",),
    ),
    "SGLang's JSON, attention data parallelism, and a module a draft": Case(
        "python -m sglang.launch_server --model-path M --tp 8 --dp 4 --enable-dp-attention "
        "--speculative-algorithm EAGLE --speculative-num-steps 2 --speculative-eagle-topk 1 "
        "--speculative-num-draft-tokens 3 --max-running-requests 32 --enable-multi-layer-eagle "
        """--cuda-graph-config '{"decode": {"max_bs": 6}}'""",
        # A group of 2 ranks holds 8 requests. The sizes' tokens are even.
        *(2, 8, (2, 4, 6), (2, 4, 6)),
        warns=("attention data parallelism",),
    ),
    "TensorRT-LLM's file": Case(
        "trtllm-serve nvidia/DeepSeek-R1-FP4 --backend pytorch --max_batch_size 32 "
        "--extra_llm_api_options mtp.yaml",
        *(3, 32, (1, 2, 4, 8, 16)),
    ),
    "TensorRT-LLM's defaults: 128 at most, no padding": Case(
        "trtllm-serve M --max_batch_size 256 --config plain.yml",
        *(1, 256, (*range(1, 33), 64, 128)),
    ),
    "TensorRT-LLM's list is clipped to its batch": Case(
        "trtllm-serve M --config listed.yaml", 0, 32, (1, 2, 4, 32)
    ),
    "TensorRT-LLM without graphs": Case(
        "trtllm-serve serve M --config off.yaml", 0, 4, (), warns=("graphs are switched off",)
    ),
    "FastDeploy's line": Case(
        "python -m fastdeploy.entrypoints.openai.api_server --model ./ERNIE --max-num-seqs 10 "
        "--tensor-parallel-size 4 --quantization wint4 "
        """--speculative-config '{"method": "mtp", "num_speculative_tokens": 2, """
        """"num_model_steps": 2, "model": "./ERNIE/mtp"}' """
        """--graph-optimization-config '{"use_cudagraph": true}'""",
        *(2, 10, (1, 2, 4, 8, 10), ()),
    ),
    "FastDeploy's list, in requests": Case(
        "python -m fastdeploy.entrypoints.openai.api_server --model M --max_num_seqs=8 "
        """--graph-optimization-config '{"cudagraph_capture_sizes": [1, 8, 16]}'""",
        *(0, 8, (1, 8)),
    ),
}


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def read(line: str, gpu: str | None = H200) -> Launch:
    return read_launch(line, None, GPUS[gpu] if gpu else None)


def phases(found: Launch) -> PhasePlan:
    return phases_of(found.request, plan(found.request))


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_planned_as_its_engine_does(name: str) -> None:
    case = LINES[name]
    launch = read(case.line, case.gpu)
    found = phases(launch)
    assert launch.request.spec_tokens == case.k
    assert launch.request.max_batch_size == case.most
    assert found.plan.batch_sizes == case.verify
    if case.rest is not None:
        assert found.of(Phase.DRAFT_REST).batch_sizes == case.rest
    said = [*launch.warnings, *found.plan.warnings]
    for warning in case.warns:
        assert any(warning in line for line in said), said


def test_there_are_twenty_lines_of_four_engines() -> None:
    assert len(LINES) >= 20
    assert {read(case.line).engine for case in LINES.values()} == {
        *("vLLM", "SGLang", "TensorRT-LLM", "FastDeploy")
    }


def test_a_line_that_is_understood_whole_warns_of_nothing() -> None:
    assert read(LINES["a recipe's MTP line"].line).warnings == ()
    assert read(LINES["SGLang's MTP line"].line).warnings == ()


BROKEN = {
    "vllm serve M --speculative-config '{method: mtp}'": "--speculative-config {method: mtp}: is "
    "not JSON",
    "vllm serve M --speculative-config '{\"a\": 1'": "--speculative-config",
    "vllm serve M --max-num-seqs 'abc": "--from: no closing quotation",
    "vllm serve M --max-num-seqs two": "--max-num-seqs two: must be a whole number",
    "vllm serve M --max-num-seqs": "--max-num-seqs: needs a value",
    'vllm serve M -sc \'{"method": "mtp"}\'': "num_speculative_tokens is missing",
    'vllm serve M -cc \'{"cudagraph_mode": "FULL"}\'': "cudagraph_mode FULL: is not planned",
    "vllm serve M -cc '[1]'": "-cc [1]: must be a JSON object",
    "vllm serve M --cudagraph-capture-sizes 4 0": "--cudagraph-capture-sizes 0: must be at least 1",
    "vllm serve M -sc.num_speculative_tokens=40": "num_speculative_tokens 40: must be at most 32",
    "vllm serve M --config nowhere.yaml": "--config nowhere.yaml: No such file",
    "llama-server -m M": "starts no known engine",
    "": "--from: is empty",
    'python -m sglang.launch_server --cuda-graph-config \'{"decode": {"size": 3}}\'': "decode "
    "size: must be backend, max_bs or bs",
    "python -m sglang.launch_server --tp 8 --attn-dp-size 3": "--attn-dp-size 3: must divide",
    "trtllm-serve M --config rising.yaml": "draft_len_schedule: the engine refuses it. The "
    "smallest batch size, 4, must draft max_draft_len 3",
    "trtllm-serve M --config both.yaml": "beside max_concurrency: the engine refuses both",
    "trtllm-serve M --extra_llm_api_options adaptive.txt": "adaptive.txt: No such file",
    "python -m fastdeploy.entrypoints.openai.api_server --max-num-seqs 300": "must be at most 256",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_line_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read(line)
    assert BROKEN[line] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_ceiling_beside_a_list_that_disagrees_is_refused() -> None:
    launch = read("vllm serve M --cudagraph-capture-sizes 1 2 --max-cudagraph-capture-size 8")
    with pytest.raises(BadInputError, match=r"vllm-0\.33 refuses max_cudagraph_capture_size 8"):
        plan(launch.request)


def test_fastdeploys_prefill_graphs_are_named() -> None:
    found = read(
        "python -m fastdeploy.entrypoints.openai.api_server --model M "
        """--graph-optimization-config '{"full_cuda_graph": false, "graph_opt_level": 1}'"""
    )
    assert found.warnings == (
        "--graph-optimization-config full_cuda_graph false: prefills have graphs too, at "
        "[1, 2, 4, 8] tokens",
    )


def test_a_short_beginning_of_a_name_stands_for_it() -> None:
    assert read("vllm serve M --max-num-s 7").request.max_batch_size == 7
    assert read("vllm serve M --max-num 7").warnings == ("--max-num 7: not understood",)


def test_drafts_without_a_model_have_no_phase_of_their_own() -> None:
    looked_up = read(
        """vllm serve M --max-num-seqs 4 -sc '{"method": "ngram", "num_speculative_tokens": 3}'"""
    )
    assert [each.phase for each in phases(looked_up).phases] == [Phase.VERIFY]
    parallel = read(
        """vllm serve M --max-num-seqs 4 -sc '{"method": "dflash", "num_speculative_tokens": 15}'"""
    )
    assert [each.phase for each in phases(parallel).phases] == [Phase.VERIFY, Phase.DRAFT_FIRST]


def test_pieces_alone_leave_no_whole_graph() -> None:
    found = phases(read("vllm serve M --max-num-seqs 4 -cc.cudagraph_mode=PIECEWISE"))
    assert found.plan.batch_sizes == () and found.mixed_tokens == (1, 2, 4, 8)
    assert found.eager_batch_sizes == (1, 2, 3, 4)


def test_a_file_alone_names_its_engine() -> None:
    engines = {
        name: read_launch(None, Path(name), None).engine
        for name in ("vllm.yaml", "mtp.yaml", "listed.yaml")
    }
    assert engines == {
        "vllm.yaml": "vLLM",
        "mtp.yaml": "TensorRT-LLM",
        "listed.yaml": "TensorRT-LLM",
    }


def test_a_schedule_becomes_tiers() -> None:
    found = read("trtllm-serve M --config schedule.yaml")
    assert found.schedule is not None
    assert [(tier.first, tier.last, tier.lengths) for tier in found.schedule.tiers] == [
        (1, 4, (3,)),
        (5, 8, (1,)),
    ]
    ranges = read(
        """vllm serve M --max-num-seqs 32 -sc '{"method": "mtp", "num_speculative_tokens": 3,"""
        """ "num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 32, 1]]}'"""
    )
    assert ranges.schedule is not None and ranges.schedule.lengths == (1, 3)
    adaptive = read(
        "python -m sglang.launch_server --model-path M --speculative-algorithm EAGLE "
        "--speculative-adaptive --speculative-adaptive-config adaptive.json "
        "--max-running-requests 8"
    )
    assert adaptive.schedule is not None and adaptive.schedule.lengths == (1, 3)


def test_vllm_ascend_has_defaults_of_its_own() -> None:
    found = read_launch("vllm serve M", None, None, "vllm-ascend-0.30")
    assert (found.request.max_batch_size, found.request.max_num_batched_tokens) == (256, 2048)
    assert found.notes == ("max_num_seqs 256, the default on an NPU",)
    given = read_launch("vllm serve M --max-num-seqs 9", None, None, "vllm-ascend-0.30")
    assert (given.request.max_batch_size, given.notes) == (9, ())


def test_another_release_of_the_same_engine() -> None:
    line = LINES["a recipe's MTP line"].line
    old = read_launch(line, None, GPUS[H200], "vllm-0.28")
    assert 20 not in plan(old.request).batch_sizes
    with pytest.raises(BadInputError, match="starts vLLM"):
        read_launch(line, None, None, "sglang-0.5.23")


@pytest.mark.parametrize(
    ("gpu", "maximum"),
    [("t4", 8), ("rtx5090", 48), ("l40", 32), ("h100", 256), ("h200", 256), ("b200", 512)],
)
def test_sglangs_maximum_follows_the_gpu(gpu: str, maximum: int) -> None:
    found = read("python -m sglang.launch_server --max-running-requests 600", gpu)
    assert found.request.graph_maximum == maximum
    hint = f"batches above {maximum} requests run eager. Raise it with --cuda-graph-max-bs-decode"
    assert any(hint in note for note in found.notes)


@pytest.mark.parametrize(("gpu", "maximum"), [("rtx5090", 160), ("l40", 160), ("h200", 512)])
def test_sglangs_maximum_is_higher_from_four_gpus_on(gpu: str, maximum: int) -> None:
    assert read("python -m sglang.launch_server --tp 4", gpu).request.graph_maximum == maximum


@pytest.mark.parametrize(
    ("gpu", "budget", "most"),
    [("l40", 2048, 256), ("a100", 2048, 256), ("h100", 8192, 1024), ("b200", 16384, 1024)],
)
def test_vllms_budget_follows_the_gpu(gpu: str, budget: int, most: int) -> None:
    found = read("vllm serve M", gpu).request
    assert (found.max_num_batched_tokens, found.max_batch_size) == (budget, most)
    assert found.blackwell == (gpu == "b200")


def test_one_rank_or_stage_is_none() -> None:
    for line in (
        "vllm serve M -pp 1 -dp 1",
        "trtllm-serve M --pp_size 1",
        "python -m sglang.launch_server --pp-size 1",
    ):
        assert read(line).warnings == ()
    assert read("vllm serve M -pp 2").warnings == (
        "-pp 2: not planned (each stage has graphs of its own)",
    )


def test_what_of_a_file_is_not_planned_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(
        "backend: _autodeploy\nspeculative_config: {decoding_type: Eagle3, max_draft_len: 2, "
        "eagle3_one_model: false, made_up: 1}\n"
    )
    assert read("trtllm-serve M --config odd.yaml").warnings == (
        "speculative_config.made_up: not understood",
        "speculative_config.eagle3_one_model false: not planned (drafts have graphs of their own)",
        "--backend _autodeploy: not planned (the plan is pytorch's)",
    )


FASTDEPLOY = "python -m fastdeploy.entrypoints.openai.api_server --model M --speculative-config "


def test_fastdeploys_drafts_from_the_text_have_no_phase() -> None:
    found = read(FASTDEPLOY + """'{"method": "ngram", "num_speculative_tokens": 3}'""")
    assert [each.phase for each in phases(found).phases] == [Phase.VERIFY]
    assert found.warnings == ()


def test_what_of_fastdeploys_drafts_is_not_understood_is_listed() -> None:
    found = read(FASTDEPLOY + """'{"method": "made_up", "num_speculative_tokens": 1, "x": 1}'""")
    assert found.warnings == (
        "--speculative-config x: not understood",
        "--speculative-config method made_up: not understood, planned as mtp",
    )


@pytest.mark.parametrize(
    ("module", "harmless"),
    [
        (vllm_line, harmless_options.VLLM),
        (sglang_line, harmless_options.SGLANG),
        (tensorrt_llm_line, harmless_options.TENSORRT_LLM),
        (fastdeploy_line, harmless_options.FASTDEPLOY),
    ],
)
def test_no_option_that_counts_is_called_harmless(module, harmless: frozenset[str]) -> None:
    counts = {name for spec in module.SPECS for name in spec.names} | module.UNPLANNED.keys()
    assert counts & harmless == set()
