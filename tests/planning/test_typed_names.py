"""Messages name the option that stands in the line, not another name of it."""

import pytest

from cgbench.errors import BadInputError
from cgbench.planning.launch_lines import read_launch

SGLANG = "python -m sglang.launch_server --model-path M"

ERRORS = {
    "trtllm-serve M --extra_llm_api_options ./extra.yaml": "--extra_llm_api_options extra.yaml: No",
    "trtllm-serve M --extra_llm_api_options=extra.yaml": "--extra_llm_api_options extra.yaml: No",
    "trtllm-serve M --config extra.yaml": "--config extra.yaml: No",
    f"{SGLANG} --cuda-graph-max-bs abc": "--cuda-graph-max-bs abc: must be",
    f"{SGLANG} --cuda-graph-max-bs-decode=abc": "--cuda-graph-max-bs-decode abc: must be",
    f"{SGLANG} --cuda-graph-bs 1 abc": "--cuda-graph-bs abc: must be",
    f"{SGLANG} --tp abc": "--tp abc: must be",
    f"{SGLANG} --tensor-parallel-size 3 --enable-dp-attention --dp 2": "--attn-dp-size 2: must",
    "vllm serve M --max_num_seqs abc": "--max_num_seqs abc: must be",
    "vllm serve M --max-num-se abc": "--max-num-se abc: must be",
    "vllm serve M --max-num-seqs=abc": "--max-num-seqs abc: must be",
    "vllm serve M -tp abc -cc.pass_config.enable_sp=true": "-tp abc: must be",
    "vllm serve M -sc {": "-sc {: is not JSON",
    "vllm serve M -cc.cudagraph_mode=FOO": "-cc cudagraph_mode FOO: is not planned",
    "vllm serve M -O7": "-O 7: must be",
    "vllm serve M --speculative_config {": "--speculative_config {: is not JSON",
    "vllm serve M --max-num-seqs 8 -sc "
    """'{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": 1}'""": "-sc num_",
    "python -m fastdeploy.entrypoints.openai.api_server --max_num_seqs abc": "--max_num_seqs abc:",
}


@pytest.mark.parametrize("line", ERRORS)
def test_an_error_begins_with_the_option_as_it_was_typed(line: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_launch(line, None, None)
    assert str(caught.value).startswith(ERRORS[line])


def test_a_warning_begins_with_it_too() -> None:
    line = """vllm serve M -sc '{"method": "mtp", "num_speculative_tokens": 1, "made_up": 2}'"""
    assert read_launch(line, None, None).warnings == ("-sc made_up: not understood",)
    adaptive = f"{SGLANG} --speculative-algo EAGLE"
    assert read_launch(adaptive, None, None).warnings == (
        "--speculative-num-steps: taken as 3, which Llama's and Grok's models exceed",
    )


def test_a_name_within_a_message_stays() -> None:
    [warning] = read_launch(f"{SGLANG} --cuda-graph-max-bs 8", None, None).warnings
    assert "names it --cuda-graph-max-bs-decode, and refuses the short name" in warning
