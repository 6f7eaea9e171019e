"""The release that a line names, in an image's tag or a package's pin, is the one planned."""

import pytest

from cgbench.planning.launch_lines import read_launch

M = "M --max-num-seqs 8"
SGLANG = "python -m sglang.launch_server --model-path M"

KNOWN = {
    f"docker run --gpus all vllm/vllm-openai:v0.26.0 {M}": "vllm-0.26",
    f"docker run docker.io/vllm/vllm-openai:v0.28.1-cu129 --model {M}": "vllm-0.28",
    f"docker run localhost:5000/vllm/vllm-openai:v0.30.0rc2@sha256:0a1b {M}": "vllm-0.30",
    f"docker run quay.io/ascend/vllm-ascend:v0.30.0 vllm serve {M}": "vllm-ascend-0.30",
    f"pip install vllm==0.18.0 && vllm serve {M}": "vllm-0.18",
    f"uvx 'vllm[flashinfer]==0.31.0' serve {M}; vllm serve {M}": "vllm-0.31",
    f"uvx --from vllm@0.26.0 vllm serve {M}": "vllm-0.26",
    "docker run paddlepaddle/fastdeploy-cuda-12.6:2.4.0 "
    "python -m fastdeploy.entrypoints.openai.api_server --model M": "fastdeploy-2.4",
}


@pytest.mark.parametrize("line", KNOWN)
def test_a_release_with_a_policy_is_planned(line: str) -> None:
    found = read_launch(line, None, None)
    assert (found.request.policy, found.warnings) == (KNOWN[line], ())
    assert found.notes[0].startswith(f"{KNOWN[line]}, because the line names ")


UNKNOWN = {
    f"docker run vllm/vllm-openai:v0.10.1 {M}": (
        "vllm/vllm-openai:v0.10.1 names release 0.10.1: planned as vllm-0.33. --policy chooses "
        "another: vllm-0.18, vllm-0.26, vllm-0.28, vllm-0.30, vllm-0.31"
    ),
    "docker run nvcr.io/nvidia/tensorrt-llm/release:1.0.0 trtllm-serve M": (
        "nvcr.io/nvidia/tensorrt-llm/release:1.0.0 names release 1.0.0: planned as "
        "tensorrt-llm-1.3, the only release known"
    ),
    f"docker run lmsysorg/sglang:v0.5.3-cu126 {SGLANG}": (
        "lmsysorg/sglang:v0.5.3-cu126 names release 0.5.3: planned as sglang-0.5.23, the only "
        "release known"
    ),
}


@pytest.mark.parametrize("line", UNKNOWN)
def test_a_release_without_a_policy_is_a_warning(line: str) -> None:
    assert read_launch(line, None, None).warnings == (UNKNOWN[line],)


@pytest.mark.parametrize(
    "line",
    [
        f"docker run vllm/vllm-openai {M}",
        f"docker run vllm/vllm-openai:latest {M}",
        f"docker run vllm/vllm-openai:v0.33.0 {M}",
        f"docker run localhost:5000/vllm/vllm-openai {M}",
        f"docker run my/own-image:v0.10.1 vllm serve {M}",
        f"docker run lmsysorg/sglang:v0.5.23-cu129 {SGLANG}",
    ],
)
def test_other_tags_change_nothing(line: str) -> None:
    found = read_launch(line, None, None)
    assert found.warnings == ()
    assert found.request.policy in ("vllm-0.33", "sglang-0.5.23")


def test_the_policy_that_is_asked_for_stands_above_the_tag() -> None:
    for tag in ("v0.26.0", "v0.10.1"):
        found = read_launch(f"docker run vllm/vllm-openai:{tag} {M}", None, None, "vllm-0.28")
        assert (found.request.policy, found.warnings) == ("vllm-0.28", ())
