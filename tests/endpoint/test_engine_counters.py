"""Counters of vLLM and SGLang are read, and compared across batch sizes with an interval."""

import pytest

from cgbench.endpoint.acceptance_across import (
    Acceptance,
    AcceptanceFound,
    judge_acceptance,
    without_any,
)
from cgbench.endpoint.engine_counters import Drafted, Reading, parse_counters, sum_of

VLLM = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_drafts_total{{engine="1",model_name="m"}} 0.0
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {first}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {second}
vllm:num_requests_running{{engine="0",model_name="m"}} 2.0
a line of no known form
"""
SGLANG = """\
sglang:generation_tokens_total{{model_name="m"}} {tokens}
sglang:spec_verify_calls_total{{model_name="m"}} {calls}
sglang:num_running_reqs{{model_name="m"}} 0.0
"""


def test_vllm_counts_by_position() -> None:
    before = parse_counters(VLLM.format(drafts=10, accepted=8, first=6, second=2))
    after = parse_counters(VLLM.format(drafts=30, accepted=28, first=16, second=12))
    assert before.counts_drafts and before.running == 2
    assert after.drafted_since(before, 4) == Drafted(20, 20, (10, 10))
    assert after.drafted_since(Reading(), 4) == Drafted(30, 28, (16, 12))


def test_older_names_without_total_are_read() -> None:
    text = VLLM.format(drafts=10, accepted=8, first=6, second=2).replace("_total{", "{")
    assert parse_counters(text).drafted_since(Reading(), 1) == Drafted(10, 8, (6, 2))


def test_sglang_counts_calls_and_tokens() -> None:
    before = parse_counters(SGLANG.format(tokens=100, calls=40))
    after = parse_counters(SGLANG.format(tokens=204, calls=80))
    # 104 tokens, 4 of them from prefill, in 40 calls: 60 drafts were kept.
    assert after.drafted_since(before, 4) == Drafted(40, 60)
    assert after.running == 0


def test_a_page_without_counters() -> None:
    assert parse_counters("go_threads 7\n").drafted_since(Reading(), 1) is None
    assert not parse_counters("").counts_drafts


def test_drafts_add_up() -> None:
    assert sum_of([Drafted(2, 3, (2, 1)), Drafted(1, 1, (1,))]) == Drafted(3, 4, (3, 1))
    assert sum_of([]) is None
    assert without_any(Drafted(50, 0)) and not without_any(Drafted(49, 0))
    assert not without_any(Drafted(500, 1)) and not without_any(None)


def found(here: Drafted, alone: Drafted, **changes: object) -> AcceptanceFound:
    asked = {"num_edges": 10, "copies": 1.0, "spec_tokens": 2, "first_only": False} | changes
    return judge_acceptance(alone, here, **asked)  # type: ignore[arg-type]


ALONE = Drafted(400, 440, (280, 160))


def test_as_alone() -> None:
    assert found(Drafted(200, 216, (138, 78)), ALONE).answer is Acceptance.SAME


@pytest.mark.parametrize("here", [Drafted(200, 60, (40, 20)), Drafted(200, 380, (195, 185))])
def test_far_from_alone_in_either_direction(here: Drafted) -> None:
    """More is no better: then alone is what is broken, as below the eager cliff."""
    judged = found(here, ALONE)
    assert judged.answer is Acceptance.DIFFERS
    assert judged.low is not None and judged.high is not None
    assert judged.low > 0 or judged.high < 0


def test_parts_of_a_text_may_be_easier_and_not_harder() -> None:
    """Where some batch sizes have no drafts, only parts are counted. A sound server kept 2.24 there
    and 1.7 of the whole texts."""
    easier, harder = Drafted(200, 380, (195, 185)), Drafted(200, 60, (40, 20))
    assert found(easier, ALONE, in_parts=True).answer is Acceptance.SAME
    assert found(harder, ALONE, in_parts=True).answer is Acceptance.DIFFERS


def test_drafts_of_a_later_position_alone() -> None:
    """A drafter whose later steps replay a wrong graph loses only those."""
    judged = found(Drafted(300, 210, (210, 0)), ALONE)
    assert judged.answer is Acceptance.DIFFERS
    only_first = found(Drafted(300, 210, (210, 0)), ALONE, first_only=True)
    assert only_first.answer is Acceptance.SAME


def test_few_drafts_decide_nothing() -> None:
    assert found(Drafted(29, 0, (0, 0)), ALONE).answer is Acceptance.UNKNOWN
    assert found(Drafted(36, 26, (18, 8)), ALONE).answer is Acceptance.UNDECIDED
    # The same drafts counted eight times over are not eight times the evidence.
    many = Drafted(288, 208, (144, 64))
    assert found(many, ALONE).answer is Acceptance.DIFFERS
    assert found(many, ALONE, copies=8.0).answer is Acceptance.UNDECIDED


def test_what_few_drafts_hide() -> None:
    """A stale KV of the head lost 0.5 of 2.1: 37 drafts of a server that had it looked sound."""
    few = found(Drafted(38, 42, (27, 15)), ALONE)
    assert few.answer is Acceptance.SAME and few.may_hide_a_loss
    many = found(Drafted(200, 216, (138, 78)), ALONE)
    assert many.answer is Acceptance.SAME and not many.may_hide_a_loss
    assert not found(Drafted(29, 31, (20, 11)), ALONE).may_hide_a_loss


def test_none_kept() -> None:
    judged = found(Drafted(60, 0, (0, 0)), ALONE)
    assert judged.answer is Acceptance.DIFFERS and judged.text == "none of 60 drafts was kept"


def test_without_positions_the_mean_is_compared() -> None:
    assert found(Drafted(200, 60), Drafted(400, 440)).answer is Acceptance.DIFFERS
    assert found(Drafted(200, 215), Drafted(400, 440)).answer is Acceptance.SAME
    asked = found(Drafted(200, 60), Drafted(400, 440), first_only=True)
    assert asked.answer is Acceptance.UNKNOWN


def test_a_server_that_counts_nothing() -> None:
    judged = judge_acceptance(None, None, num_edges=1, copies=1.0, spec_tokens=3, first_only=False)
    assert judged.answer is Acceptance.UNKNOWN
