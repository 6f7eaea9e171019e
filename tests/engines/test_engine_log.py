"""What a log of vLLM 0.26 states of its graphs and backends."""

from cgbench.engines.engine_log import log_facts

LOG = """\
INFO 11-29 20:38:01 [cuda.py:483] Using FLASH_ATTN attention backend out of potential backends: x.
INFO 11-29 20:38:02 [unquantized.py:375] Using TritonExperts MoE backend
INFO 11-29 20:38:02 [fp8.py:10] Using 'TRITON' Unquantized MoE backend out of potential: x.
INFO 11-29 20:38:02 [selector.py:137] Using FLASH_ATTN MLA prefill backend.
INFO 11-29 20:38:03 [cuda.py:483] Using FLASH_ATTN attention backend out of potential backends: x.
INFO 11-29 20:38:31 [model_runner.py:748] Graph capturing finished in 9 secs, took 0.64 GiB
INFO 11-29 20:38:35 [model_runner.py:748] Graph capturing finished in 2 secs, took -0.04 GiB
"""


def test_captures_are_summed_and_backends_named_once() -> None:
    assert log_facts(LOG) == {
        "capture_s": "11",
        "graph_memory_gib": "0.60",
        "log: attention": "FLASH_ATTN",
        "log: MoE": "TritonExperts",
        "log: Unquantized MoE": "TRITON",
        "log: MLA prefill": "FLASH_ATTN",
    }


def test_a_log_without_such_lines_gives_nothing() -> None:
    assert log_facts("INFO starting\n") == {}
