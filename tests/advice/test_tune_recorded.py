"""Advice on recorded H200 runs: what they can tell, and where they must be silent."""

from dataclasses import replace
from itertools import pairwise
from math import exp, inf, log
from pathlib import Path

import pytest

from cgbench.advice.advise import Advice, Question, advise
from cgbench.advice.break_even import Pays
from cgbench.advice.cell_times import At, Group, log_ratio, measured_times
from cgbench.advice.interpolation import interpolation_doubt, left_out_errors, time_at
from cgbench.advice.lengths import lengths_of
from cgbench.advice.verification import all_agree, cells_again, gains_again
from cgbench.errors import BadInputError, CannotError, ExitCode
from cgbench.planning import Concurrency
from cgbench.rundir.schema import Cell
from cgbench.rundir.store import RunDirectory
from cgbench.tables.tune import conclusions
from cgbench.words import Status
from tests.support.recorded import recorded
from tests.support.runs import Made, h200_record, without_cells

MANY_K = "qwen3.5-0.8b-k0123"
"""k 0 to 3 at seven batch sizes, random weights."""


def advice_of(*names: str, **asked: object) -> Advice:
    return advise([recorded(name) for name in names], Question(**asked))  # type: ignore[arg-type]


def test_break_even_is_the_ratio_of_the_tables_wall_times() -> None:
    found = advice_of(MANY_K).break_evens
    latency = recorded(MANY_K).latency()
    rows = latency[latency["scope"] == "iteration"].set_index(["spec_tokens", "batch_size"])
    wall_ms = rows["tpot_ms"] * rows["mean_acceptance_length"]
    assert len(found) == 21
    for each in found:
        _, batch_size, k = each.at
        ratio = wall_ms[k, batch_size] / wall_ms[0, batch_size]
        assert each.length.value == pytest.approx(ratio, rel=0.003)
        assert each.length.low < each.length.value < each.length.high


def test_synthetic_acceptance_of_a_run_is_never_taken_for_a_measured_one() -> None:
    found = advice_of(MANY_K)
    assert "no measurement of acceptance" in found.lengths.source
    assert {each.pays for each in found.break_evens} == {Pays.UNKNOWN}
    assert [each.chosen for each in found.contexts] == [()]
    assert found.exit_code is ExitCode.OK


def test_random_weights_have_no_measured_acceptance() -> None:
    assert not advice_of("default-k3").lengths.source.startswith("none")
    assert "golden:" in advice_of("qwen3-30b-a3b-k3").lengths.source
    assert "Another model than this one" in advice_of("qwen3-30b-a3b-k3").lengths.source


def test_measured_acceptance_comes_with_its_interval() -> None:
    first, *_ = advice_of("smollm2-humaneval-k3").break_evens
    assert first.known and first.known.low < first.known.value < first.known.high
    assert first.pays is Pays.YES


def test_high_acceptance_advises_the_longest_k_at_every_batch_size() -> None:
    (found,) = advice_of(MANY_K, acceptance="synthetic:0.8,0.6,0.4").contexts
    assert [(tier.first, tier.last, tier.k) for tier in found.chosen] == [(1, 64, 3)]
    assert {best.k for best in found.bests} == {3}
    assert all(gain.speedup.low > 1 for gain in found.gains)


def test_what_is_nearly_alike_is_not_advised() -> None:
    found = advice_of(MANY_K, acceptance="golden:deepseek-v4-on")
    assert found.contexts[0].chosen == () and found.contexts[0].options == ()
    assert found.contexts[0].unsettled == (3,)
    assert found.exit_code is ExitCode.INCONCLUSIVE


def test_a_schedule_is_advised_only_for_more_than_the_least_effect() -> None:
    asked = {"acceptance": "golden:deepseek-v4-on", "min_effect": 0.001}
    (found,) = advice_of(MANY_K, **asked).contexts
    assert [(tier.first, tier.last, tier.k) for tier in found.chosen] == [(1, 2, 3), (3, 64, 2)]
    assert min(gain.speedup.low for gain in found.gains) > 1.001


@pytest.mark.parametrize(
    ("name", "acceptance", "expected"),
    [
        # ms a token: 4.550 and 11.598 without drafts, 5.069 and 10.936 at k = 3, at 1 and 8.
        ("ernie-4.5-21b-a3b-k3", "synthetic:0.4,0.2,0.1", [(1, 7, 0), (8, 64, 3)]),
        # At k = 4 and 2, at 32 and 48 requests: 2.730 and 3.820, 2.894 and 3.308.
        ("mimo-7b-surface", None, [(1, 32, 4), (33, 64, 2)]),
        # k = 8 runs without a graph at 64, and where it begins to was not measured.
        ("mimo-7b-surface", "synthetic:1,1,1,1,1,1,1,1", [(1, 48, 8), (49, 64, 4)]),
    ],
)
def test_a_schedule_switches_where_the_longer_k_is_surely_behind_or_ahead(
    name: str, acceptance: str | None, expected: list[tuple[int, int, int]]
) -> None:
    (found,) = advice_of(name, acceptance=acceptance).contexts
    assert [(tier.first, tier.last, tier.k) for tier in found.chosen] == expected


def test_batch_sizes_that_were_not_measured_widen_the_gain() -> None:
    asked = {"acceptance": "synthetic:0.8,0.6,0.4"}
    (alike,) = advice_of(MANY_K, **asked).contexts
    (spread,) = advice_of(MANY_K, **asked, concurrency=Concurrency.uniform(1, 64)).contexts
    widths = [each.gains[0].speedup.high - each.gains[0].speedup.low for each in (alike, spread)]
    assert widths[1] > 10 * widths[0]


def test_two_batch_sizes_tell_nothing_of_those_between() -> None:
    (found,) = advice_of("smollm2-humaneval-k3", concurrency=Concurrency.uniform(1, 8)).contexts
    assert found.doubt.num_sizes == 0 and found.doubt.error == found.doubt.ratio_error == inf
    assert found.chosen == ()


def test_the_largest_measured_k_is_not_said_to_be_the_best_of_all() -> None:
    (high,) = advice_of(MANY_K, acceptance="synthetic:0.8,0.6,0.4").contexts
    assert "of those measured, 0, 1, 2, 3. A larger k was not measured" in high.conclusion
    (none,) = advice_of(MANY_K, acceptance="synthetic:0,0,0").contexts
    assert "a larger k" not in none.conclusion


def test_a_larger_k_that_was_measured_at_some_batch_sizes_is_not_said_to_be_unmeasured() -> None:
    """k = 8 has no graph at 64, and no time between 48 and 64."""
    asked = Concurrency.parse("geometric:8")
    (found,) = advice_of("mimo-7b-surface", concurrency=asked).contexts
    assert [(tier.first, tier.last, tier.k) for tier in found.chosen] == [(1, 64, 4)]
    assert "of those measured, 0, 1, 2, 4. k = 8 cannot be judged at every" in found.conclusion
    assert "was not measured" not in found.conclusion


def test_requests_above_the_largest_measured_batch_are_told() -> None:
    (found,) = advice_of(MANY_K, concurrency=Concurrency.uniform(1, 100)).contexts
    assert found.work.words == "uniform:1-100, more than 64 counted as 64"


def test_gain_over_one_k_alone_is_shown_against_it() -> None:
    (found,) = advice_of(MANY_K, acceptance="synthetic:0.8,0.6,0.4", against=1).contexts
    assert [gain.k for gain in found.gains] == [1]
    with pytest.raises(BadInputError, match="--against 7: not measured"):
        advice_of(MANY_K, against=7)


@pytest.mark.parametrize("rates", ["0.8,0.6,0.4", "0.5,0.2,0.05", "0.13,0.1", "0,0,0", "1,1,1"])
def test_a_tier_never_drafts_a_k_that_a_measured_batch_size_speaks_against(rates: str) -> None:
    (found,) = advice_of(MANY_K, acceptance=f"synthetic:{rates}").contexts
    for best in found.bests:
        size = best.group.batch_size
        (k,) = [tier.k for tier in found.tiers if tier.first <= size <= tier.last]
        assert k in best.good
    assert found.tiers[0].first == 1
    assert all(before.last + 1 == after.first for before, after in pairwise(found.tiers))


def test_no_acceptance_at_all_makes_no_drafts_the_best() -> None:
    (found,) = advice_of(MANY_K, acceptance="synthetic:0,0,0").contexts
    assert [(tier.first, tier.last, tier.k) for tier in found.chosen] == [(1, 64, 0)]
    assert found.options == ()


def test_rounds_that_both_have_tell_more_than_independent_ones() -> None:
    times = measured_times([recorded(MANY_K)])
    cells = times.of_group(Group(1024, 8))
    paired = log_ratio(cells[3], cells[0])
    apart = (cells[3].log_estimate.error ** 2 + cells[0].log_estimate.error ** 2) ** 0.5
    assert paired.error < 2 * apart
    assert paired.value == pytest.approx(
        cells[3].log_estimate.value - cells[0].log_estimate.value, abs=0.002
    )


def test_left_out_batch_sizes_are_predicted_within_a_few_percent_where_the_curve_is_smooth() -> (
    None
):
    times = measured_times([recorded(MANY_K)])
    assert 0.005 < interpolation_doubt(times, 1024).error < 0.03
    assert time_at(times, At(1024, 65, 1)) is None
    between = time_at(times, At(1024, 12, 1))
    assert between and not between.is_measured


def test_runs_of_two_models_make_no_one_table() -> None:
    with pytest.raises(CannotError, match="another model"):
        advice_of(MANY_K, "mimo-7b-k3-compiled")


def test_a_cell_in_two_runs_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"batch size 1 at context 1024 is in .* too"):
        advice_of(MANY_K, MANY_K)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("greedy", "only cgbench run measures it"),
        ("golden:nothing", "unknown"),
        ("length:9", "states no length for any k of the run, 1, 2, 3"),
        # The shortest k that reaches it would win by having every draft accepted.
        ("length:2", "is one length, and k = 1, 2, 3 reach different ones"),
        ("synthetic:0.5,x", "must be rates"),
    ],
)
def test_acceptance_that_states_nothing_is_refused_by_its_flag(text: str, said: str) -> None:
    with pytest.raises(BadInputError, match=f"--acceptance {text}: .*{said}"):
        advice_of(MANY_K, acceptance=text)


def test_a_run_without_a_time_says_why() -> None:
    with pytest.raises(BadInputError, match=r"^run: latency\.csv has no cell$"):
        measured_times([without_cells()])
    failed = Made(edit=lambda cell: replace(cell, status=Status.AUDIT_FAILED)).run(Path("run"))
    with pytest.raises(BadInputError, match="time to read: of scope iteration, 4 are audit_failed"):
        measured_times([failed])


def test_one_length_serves_the_one_k_that_was_measured() -> None:
    found = advice_of("mimo-7b-golden-k3", acceptance="length:2.5")
    assert found.lengths.source == "stated: length:2.5, without an interval"
    assert {each.known.value for each in found.break_evens if each.known} == {2.5}


@pytest.mark.parametrize(
    ("name", "row", "is_borrowed"),
    [
        ("mimo-7b-golden-k3", "glm-5.2-on", True),
        ("qwen3.5-35b-surface", "qwen3.5-397b-on", True),
        # Which model a checkpoint is, its name need not tell.
        ("smollm2-humaneval-k3", "glm-5.2-on", False),
    ],
)
def test_a_golden_length_that_is_stated_is_another_models_too(
    name: str, row: str, is_borrowed: bool
) -> None:
    source = advice_of(name, acceptance=f"golden:{row}").lengths.source
    assert source.endswith(". Another model than this one") is is_borrowed


@pytest.mark.parametrize(("rule", "wider"), [("greedy", 2.0), ("sampled", 1.0)])
def test_prompts_that_a_greedy_batch_repeats_tell_nothing_more(rule: str, wider: float) -> None:
    """A batch of eight decodes two prompts four times over, and the tokens of each are the same."""

    def error(num_prompts: int) -> float:
        workload = h200_record().workload | {"num_prompts": num_prompts}
        made = Made(
            edit=lambda cell: (
                replace(
                    cell,
                    acceptance=rule,
                    num_drafted=1600,
                    num_accepted_per_pos=(1120, 480)[: cell.spec_tokens],
                )
                if cell.batch_size == 8
                else None
            ),
            record={
                "workload": workload,
                "model": {**h200_record().model, "random_weights": False},
            },
            costs=(),
        )
        return lengths_of([made.run(Path("run"))]).logs[2].error

    assert error(2) == pytest.approx(wider * error(8), rel=0.01)


def test_a_run_without_drafts_is_told_to_measure_some() -> None:
    found = advice_of("qwen3-30b-peers-k0/cgbench")
    assert found.lengths.source.startswith("none: no k above 0 was measured")
    with pytest.raises(BadInputError, match="states no length for k = 0 alone"):
        advice_of("qwen3-30b-peers-k0/cgbench", acceptance="golden:glm-5.2-on")


def test_a_cell_that_is_not_ok_is_left_out_by_name(tmp_path: Path) -> None:
    def edit(cell: Cell) -> Cell:
        is_bad = cell.spec_tokens and cell.batch_size == 8
        return replace(cell, status=Status.DISTURBED) if is_bad else cell

    path = Made(edit=edit).write(tmp_path / "run")
    times = measured_times([RunDirectory.open(path)])
    assert [line for line in times.left_out if "batch size 8" in line and "disturbed" in line]
    assert 2 not in times.of_group(Group(times.contexts[0], 8))


@pytest.mark.parametrize("lost", [{(2, 8)}, {(2, 1)}, {(0, 1)}, {(0, 8), (2, 1)}])
def test_a_cell_that_was_not_measured_leaves_no_advice_and_no_fault(
    lost: set[tuple[int, int]], tmp_path: Path
) -> None:
    def edit(cell: Cell) -> Cell | None:
        return None if (cell.spec_tokens, cell.batch_size) in lost else cell

    run = RunDirectory.open(Made(edit=edit).write(tmp_path / "run"))
    for concurrency in (None, Concurrency.uniform(1, 8)):
        asked = Question(acceptance="synthetic:0.9,0.8", concurrency=concurrency)
        (found,) = advise([run], asked).contexts
        assert found.chosen == () and "no advice" in found.conclusion


def test_a_switch_that_was_not_measured_is_told_with_what_would_tell_more() -> None:
    said = "\n".join(conclusions(advice_of("mimo-7b-surface")))
    assert "the switch from k = 4 to 2 at 33 requests was not measured. 32 and 48 were" in said
    assert "40 among --batch-sizes tells more" in said
    assert "within 4.6%, and the ratio of two k within 5.0% (root mean square)" in said
    assert "coarse" not in said
    assert "coarse: measure more" in "\n".join(conclusions(advice_of("deepseek-v3-6l-latent-k3")))


def test_the_gains_that_the_documentation_states() -> None:
    (found,) = advice_of("mimo-7b-surface", concurrency=Concurrency.parse("geometric:8")).contexts
    page = (Path(__file__).parents[2] / "docs" / "which-k.md").read_text()
    assert [gain.k for gain in found.gains] == [0, 1, 2]
    for gain in found.gains:
        each = gain.speedup
        told = f"{gain.k}   {each.value:.3f}x   {each.low:.3f} to {each.high:.3f}   geometric:8"
        assert told in page


def test_what_was_promised_on_an_h200_is_what_was_measured_again() -> None:
    """``results/h200/mimo-7b-verified.md``."""
    advice = advice_of("mimo-7b-surface")
    again = measured_times([recorded("mimo-7b-verified/context-1024")])
    gains, cells = gains_again(advice, again), cells_again(advice, again)
    assert len(gains) == 5 and all_agree(gains)
    assert len(cells) == 20
    # A line from 32 to 48 requests, where cuBLAS takes 240 rows badly.
    (apart,) = [each for each in cells if not each.agrees]
    assert apart.at == At(1024, 33, 4)
    assert log(apart.predicted.value / apart.measured.value) == pytest.approx(0.126, abs=0.001)


def test_a_gain_of_a_padded_batch_is_predicted_at_its_bucket() -> None:
    """33 requests ran in a graph of 40, where k = 2 and 4 are lines from 32 to 48."""
    advice = advice_of("mimo-7b-surface")
    again = measured_times([recorded("mimo-7b-verified/context-1024")])
    assert again.cells[At(1024, 33, 4)].bucket == 40
    (gain,) = [each for each in gains_again(advice, again) if each.at.spec_tokens == 4]

    def token_times(k: int, *sizes: int) -> float:
        found = [time_at(advice.times, At(1024, n, k)) for n in sizes]
        log_length = advice.lengths.log_of(k)
        assert log_length
        return sum(each.seconds for each in found if each) / exp(log_length.value)

    ours = token_times(4, 1, 32) + token_times(2, 40, 64)
    assert gain.predicted.value == pytest.approx(token_times(4, 1, 32, 40, 64) / ours)
    assert gain.predicted.low < gain.measured.value < gain.predicted.high


def test_what_a_line_may_be_wrong_by_has_as_much_evidence_as_left_out_sizes() -> None:
    """k of one batch size are wrong together, so seven sizes at five k are seven, not 34."""
    times = advice_of("mimo-7b-surface").times
    errors, doubt = left_out_errors(times, 1024), interpolation_doubt(times, 1024)
    assert len(errors) == 34 and len({at.batch_size for at in errors}) == 7
    assert doubt.of_time.freedom == doubt.of_ratio.freedom == 7
    assert doubt.error == pytest.approx((sum(e**2 for e in errors.values()) / 34) ** 0.5)
    assert interpolation_doubt(times, 4096).of_time.error == inf
