"""Files for ``--concurrency``: vLLM's log of steps, and request traces in public columns."""

from pathlib import Path

import pytest

from cgbench.errors import BadInputError
from cgbench.planning import Concurrency
from cgbench.planning.request_trace import RequestTrace, StepLog, read_workload

LOG = """\
INFO 11-29 10:00:00 [loggers.py:1] **CUDAGraph Config Settings:**

- Mode: FULL_AND_PIECEWISE
- Capture sizes: [1, 2, 4, 8, 16]

**CUDAGraph Stats:**

| Unpadded Tokens | Padded Tokens | Num Paddings | Runtime Mode | Count |
|-----------------|---------------|--------------|--------------|-------|
| 8               | 8             | 0            | FULL         | 30    |
| 20              | 20            | 0            | NONE         | 5     |
| 7               | 8             | 1            | PIECEWISE    | 2     |
| 12              | 16            | 4            | CUDAGraphMode.FULL | 10    |
"""

TRACES = {
    "azure.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.6805900,396,109\n",
    "burst.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,374,44,418,log\n6,GPT-4,396,109,505,log\n7,GPT-4,10,0,10,log\n",
    "mooncake.jsonl": '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": []}\n'
    '{"timestamp": 1000, "input_length": 396, "output_length": 109, "hash_ids": []}\n',
    "plain.csv": "arrival_s,input_tokens,output_tokens\n1.0,374,44\n2.0,396,109\n",
}


def written(tmp_path: Path, name: str, text: str) -> str:
    file = tmp_path / name
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("name", TRACES)
def test_public_columns(tmp_path: Path, name: str) -> None:
    found = read_workload(written(tmp_path, name, TRACES[name]))
    assert isinstance(found, RequestTrace)
    assert found.arrival_ns == (0, 1_000_000_000)
    assert (found.input_tokens, found.output_tokens) == ((374, 396), (44, 109))
    assert found.tokens_per_s == 153


def test_requests_are_taken_by_their_arrival(tmp_path: Path) -> None:
    text = "arrival,output_tokens\n9,1\n4,2\n"
    found = read_workload(written(tmp_path, "a.csv", text))
    assert isinstance(found, RequestTrace)
    assert found.output_tokens == (2, 1) and found.arrival_ns == (0, 5 * 10**9)


def test_a_log_of_steps_counts_decode_batches(tmp_path: Path) -> None:
    """4 tokens a request: 8, 12 and 20 tokens are 2, 3 and 5; the step in pieces held a prefill."""
    found = read_workload(written(tmp_path, "serve.log", LOG))
    assert isinstance(found, StepLog)
    assert dict(found.at(4, 64).weights) == {2: 30, 3: 10, 5: 5}
    # Above the most requests there was a prefill too.
    assert dict(found.at(4, 4).weights) == {2: 30, 3: 10}


def test_a_log_without_a_decode_step_names_what_to_change(tmp_path: Path) -> None:
    found = read_workload(written(tmp_path, "serve.log", LOG))
    assert isinstance(found, StepLog)
    with pytest.raises(BadInputError, match="Give the --spec-tokens that it ran with"):
        found.at(7, 64)


@pytest.mark.parametrize("text", ["batch_size,weight\n1,2\n", "[1, 2]", '{"4": 2}', "3\n4\n"])
def test_other_files_are_histograms(tmp_path: Path, text: str) -> None:
    assert isinstance(read_workload(written(tmp_path, "x", text)), Concurrency)


def test_a_named_distribution() -> None:
    assert isinstance(read_workload("geometric:8"), Concurrency)


BAD = {
    "arrival,output_tokens\nsoon,3\n": "request 1: arrival soon: must be a time or a date",
    "arrival,output_tokens\n1,many\n": "request 1: output_tokens many: must be a number of tokens",
    "arrival,output_tokens\n1,-3\n": "request 1: output_tokens -3: must be a number of tokens",
    "arrival,output_tokens\n1,0\n": "holds no request with output tokens",
    "arrival,output_tokens\n0,1\n1e12,1\n": "arrival spans more than ten years",
    '{"timestamp": 1, "output_length": 2}\n[3]\n': "line 2 is no JSON object",
    "| Unpadded Tokens |\n": "holds no row of vLLM's --cudagraph-metrics",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_workload(written(tmp_path, "bad", text))
    assert BAD[text] in str(caught.value) and "\n" not in str(caught.value)
