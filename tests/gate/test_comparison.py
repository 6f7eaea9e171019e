"""Two run directories to verdicts: each way that runs differ has its own, and none is lost."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from cgbench.errors import CannotError, RunDirectoryError
from cgbench.gate.comparison import Comparison, Rules, compare, judge
from cgbench.gate.evidence import Evidence
from cgbench.gate.verdicts import Gate, Line
from cgbench.rundir import thin
from cgbench.rundir.schema import Cell
from cgbench.rundir.store import RunDirectory
from cgbench.rundir.thin import write_thin
from cgbench.words import Mode, Phase, Scope, Status, Verdict
from tests.support.example import make_cost
from tests.support.runs import Made, h200_record, only, without, without_cells


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Made().write(tmp_path_factory.mktemp("runs") / "base")


def against(base: Path, made: Made, tmp_path: Path, **rules: object) -> Comparison:
    """As ``compare`` does, which would read both anew."""
    return judge(evidence(base), Evidence.of("NEW", made.run(tmp_path / "new")), Rules(**rules))


def both(base: Made, new: Made, **rules: object) -> Comparison:
    other = evidence_of(new)
    first = other if base is new else evidence_of(base)
    return judge(replace(first, name="BASE"), other, Rules(**rules))


def evidence_of(made: Made) -> Evidence:
    return Evidence.of("NEW", made.run(Path("NEW")))


@cache
def evidence(base: Path) -> Evidence:
    return Evidence.read("BASE", base)


def at(found: Comparison, what: str, scope: Scope = Scope.ITERATION) -> Line:
    """The line of one quantity at k = 2 and batch size 8."""
    [line] = [
        line
        for line in found.lines
        if (line.what, line.scope, line.spec_tokens, line.batch_size) == (what, scope, 2, 8)
    ]
    return line


def test_a_run_is_the_same_as_itself(base: Path) -> None:
    found = compare(base, base, Rules(gate=Gate.parse("iteration,tpot,verify,host-gap,eager")))
    assert {line.verdict for line in found.lines} == {Verdict.SAME}
    assert (found.exit_code, found.differences) == (0, ())


def test_a_run_measured_again_is_the_same(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(seed=1), tmp_path)
    assert (found.exit_code, found.counts) == (0, {Verdict.SAME: 28})
    line = at(found, "iteration latency")
    assert line.low < 0 < line.high and (line.base_blocks, line.new_blocks) == (10, 10)


def test_slower_and_faster_mirror_each_other(base: Path) -> None:
    fast, slow = evidence(base), evidence_of(Made(seed=1, slower=1.03))
    forth, back = (
        judge(replace(first, name="BASE"), replace(second, name="NEW"), Rules())
        for first, second in ((fast, slow), (slow, fast))
    )
    assert forth.counts == {Verdict.REGRESSED: 16, Verdict.SAME: 12}
    assert back.counts == {Verdict.FASTER: 16, Verdict.SAME: 12}
    assert (forth.exit_code, back.exit_code) == (1, 0)
    line = at(forth, "TPOT")
    assert line.effect == pytest.approx(0.03, abs=0.005) and line.low < line.effect < line.high
    assert (line.base, line.unit) == (pytest.approx(2.015 / 2, rel=0.01), "ms")


def test_a_noisy_run_is_inconclusive(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(seed=1, noise=0.1), tmp_path)
    assert (at(found, "TPOT").verdict, found.exit_code) == (Verdict.INCONCLUSIVE, 4)
    assert at(found, "TPOT").reason == "the interval is too wide"


def test_one_block_decides_nothing(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(seed=1, num_blocks=1), tmp_path)
    assert at(found, "TPOT").verdict is Verdict.INCONCLUSIVE
    assert at(found, "TPOT").reason == "one block has no interval"


def test_a_stage_that_is_alike_by_chance_is_not_same(base: Path, tmp_path: Path) -> None:
    """Of one block, in ticks of the device: both runs' verify has the same median."""
    rules = Rules(gate=Gate.parse("verify"))
    found = compare(base, Made(seed=1).write(tmp_path / "other"), rules)
    line = at(found, "verify")
    assert line.base == line.new and (line.base_blocks, line.new_blocks) == (1, 1)
    assert (line.verdict, line.reason) == (Verdict.INCONCLUSIVE, "one block has no interval")
    assert found.exit_code == 4
    assert at(compare(base, base, rules), "verify").verdict is Verdict.SAME


def test_eager_is_reported_and_gated_only_where_asked(base: Path) -> None:
    sides = evidence(base), evidence_of(Made(seed=1, slower=1.1))
    line = at(judge(*sides, Rules()), "TPOT", Scope.EAGER)
    assert (line.verdict, line.gated) == (Verdict.REGRESSED, False)
    asked = judge(*sides, Rules(gate=Gate.parse("acceptance,eager")))
    assert {line.what for line in asked.gated} == {"mean acceptance length"}
    assert len(asked.gated) == 6


def test_min_effect_sets_the_threshold(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(seed=1, slower=1.03), tmp_path, min_effect=0.10)
    assert found.counts == {Verdict.SAME: 28}


@pytest.mark.parametrize(
    ("accepted", "verdict"),
    [((5600, 1400), Verdict.REGRESSED), ((8400, 4600), Verdict.IMPROVED)],
)
def test_acceptance(accepted: tuple[int, int], verdict: Verdict) -> None:
    change = {"num_accepted_per_pos": accepted, "num_drafted": 10000}
    many = only({"num_accepted_per_pos": (7000, 3000), "num_drafted": 10000})
    found = both(Made(edit=many), Made(edit=only(change)))
    assert at(found, "mean acceptance length").verdict is verdict
    rate = at(found, "acceptance rate, draft 1")
    assert (rate.effect, rate.gated) == (pytest.approx((accepted[0] - 7000) / 10000), False)
    # Iterations take as long as before, so a token takes longer just as fewer are accepted.
    length = 1 + sum(accepted) / 10000
    assert at(found, "TPOT").effect == pytest.approx(2 / length - 1)


def test_a_stated_length_does_not_scatter_with_the_draws() -> None:
    """The draws of two runs differ by as much as makes a measured length inconclusive."""
    rule = "golden:glm-5.2-on (borrowed)"
    few = {"acceptance": rule, "num_accepted_per_pos": (66, 30)}
    found = both(Made(edit=only({"acceptance": rule})), Made(edit=only(few)))
    for line in (at(found, "mean acceptance length"), at(found, "TPOT")):
        assert line.verdict is Verdict.SAME
    assert at(found, "mean acceptance length").new == pytest.approx(2.50)


def test_fp8_keys_and_values_meet_no_others(base: Path, tmp_path: Path) -> None:
    fp8 = Made(edit=lambda cell: replace(cell, kv_dtype="fp8"))
    [line] = against(base, fp8, tmp_path).lines
    assert line.verdict is Verdict.NOT_COMPARABLE and "kv_dtype" in str(line.reason)
    assert both(fp8, fp8).exit_code == 0


def test_tokens_over_fp8_keys_and_values_are_told_and_not_gated() -> None:
    """In float32 too: rounding may choose another number that is as near. Of activations too."""

    def made(sha256: str, kv_dtype: str, quant: str) -> Made:
        own = {"kv_dtype": kv_dtype, "quant": quant, "tokens_sha256": sha256}
        return Made(edit=lambda cell: replace(cell, dtype="float32", **own))

    for *how, code in (("fp8", "none", 0), ("same", "w8a8", 0), ("same", "w8a16", 1)):
        assert both(made("a" * 64, *how), made("b" * 64, *how)).exit_code == code


def test_acceptance_of_a_few_rows_is_inconclusive(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(edit=only({"num_accepted_per_pos": (66, 30)})), tmp_path)
    assert at(found, "mean acceptance length").verdict is Verdict.INCONCLUSIVE
    assert at(found, "TPOT").verdict is Verdict.INCONCLUSIVE
    assert at(found, "iteration latency").verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("num_prompts", "rule", "rows", "verdict"),
    [
        (8, "greedy", 1600, Verdict.REGRESSED),
        (2, "greedy", 400, Verdict.INCONCLUSIVE),
        (2, "sampled", 1600, Verdict.REGRESSED),
    ],
)
def test_prompts_that_a_greedy_batch_repeats_say_the_same_again(
    num_prompts: int, rule: str, rows: int, verdict: Verdict
) -> None:
    """A batch of eight decodes two prompts four times over: that is the evidence of one time.
    Where tokens are drawn each request has draws of its own."""
    workload = h200_record().workload | {"num_prompts": num_prompts}

    def made(accepted: tuple[int, int]) -> Made:
        change = {"num_accepted_per_pos": accepted, "num_drafted": 1600}
        edit = only(change)
        return Made(
            edit=lambda cell: replace(edit(cell), acceptance=rule), record={"workload": workload}
        )

    before = made((1120, 480))
    found = both(before, made((1040, 400)))
    line = at(found, "mean acceptance length")
    assert (line.verdict, line.base_blocks, line.new_blocks) == (verdict, rows, rows)
    assert (line.base, line.new) == (pytest.approx(2.0), pytest.approx(1.9))
    assert at(found, "TPOT").verdict is verdict
    assert both(before, before).exit_code == 0


def test_memory_is_exact(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(edit=only({"peak_memory_bytes": 4300})), tmp_path)
    assert at(found, "peak memory").verdict is Verdict.REGRESSED
    assert at(found, "peak memory").effect == pytest.approx(4300 / 4096 - 1)


@pytest.mark.parametrize(
    ("status", "what", "verdict", "code", "scope"),
    [
        (Status.AUDIT_FAILED, "status", Verdict.REGRESSED, 1, Scope.ITERATION),
        (Status.OOM, "status", Verdict.REGRESSED, 1, Scope.PHASE),
        (Status.DISTURBED, "TPOT", Verdict.INCONCLUSIVE, 4, Scope.ITERATION),
        (Status.DISTURBED, "TPOT", Verdict.INCONCLUSIVE, 4, Scope.PHASE),
    ],
)
def test_statuses(
    base: Path, tmp_path: Path, status: Status, what: str, verdict: Verdict, code: int, scope: Scope
) -> None:
    found = against(base, Made(edit=only({"status": status}, scope)), tmp_path)
    assert (at(found, what, scope).verdict, found.exit_code) == (verdict, code)


def test_a_cell_whose_floor_is_beaten_is_left_out(base: Path, tmp_path: Path) -> None:
    """Whatever its times: they were not measured as it was thought. The others decide."""
    edit = only({"status": Status.FLOOR_BEATEN})
    found = against(base, Made(edit=edit), tmp_path)
    line = at(found, "status")
    assert (line.verdict, line.gated) == (Verdict.NOT_COMPARABLE, False)
    of_cell = [each for each in found.lines if (each.spec_tokens, each.batch_size) == (2, 8)]
    assert [each for each in of_cell if each.scope == line.scope] == [line]
    assert found.gated and found.exit_code == 0


def test_where_every_floor_is_beaten_nothing_is_judged() -> None:
    run = Made(edit=lambda cell: replace(cell, status=Status.FLOOR_BEATEN))
    found = both(run, run)
    assert found.exit_code == 3
    assert any("none can be judged" in line.reason for line in found.gated)


def test_a_disturbed_cell_is_not_the_same_even_as_itself() -> None:
    run = Made(edit=only({"status": Status.DISTURBED}))
    found = both(run, run)
    of_cell = [line for line in found.gated if (line.scope, line.spec_tokens) == ("iteration", 2)]
    assert {line.verdict for line in of_cell if line.batch_size == 8} == {Verdict.INCONCLUSIVE}
    assert found.exit_code == 4


def test_both_out_of_memory_is_the_same() -> None:
    run = Made(edit=only({"status": Status.OOM}))
    found = both(run, run)
    assert (at(found, "status").verdict, found.exit_code) == (Verdict.SAME, 0)


@pytest.mark.parametrize(("scope", "code"), [(Scope.PHASE, 3), (Scope.EAGER, 0)])
def test_a_missing_cell_is_named(base: Path, scope: Scope, code: int) -> None:
    whole, lacking = evidence(base), evidence_of(Made(edit=without(scope)))
    for side, (first, second) in (("NEW", (whole, lacking)), ("BASE", (lacking, whole))):
        found = judge(replace(first, name="BASE"), replace(second, name="NEW"), Rules())
        line = at(found, "cell", scope)
        assert (line.verdict, line.reason) == (Verdict.NOT_COMPARABLE, f"missing in {side}")
        assert found.exit_code == code


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"environment": {"gpu": "NVIDIA B200"}}, "GPU: NVIDIA H200 in BASE, NVIDIA B200 in NEW"),
        (
            {"model": h200_record().model | {"fingerprint": "f2"}},
            "model fingerprint: f1 in BASE, f2",
        ),
        ({"workload": {"version": 2}}, "workload version: 1 in BASE, 2 in NEW"),
        ({"arguments": {"seed": 1}}, "--seed: 0 in BASE, 1 in NEW"),
    ],
)
def test_what_keeps_runs_apart(
    base: Path, tmp_path: Path, record: dict[str, dict[str, object]], words: str
) -> None:
    plain = h200_record()
    changed = {name: getattr(plain, name) | value for name, value in record.items()}
    found = against(base, Made(record=changed), tmp_path)
    assert [line.verdict for line in found.lines] == [Verdict.NOT_COMPARABLE]
    assert words in found.lines[0].reason
    assert found.exit_code == 3


@pytest.mark.parametrize("change", [{"tp_size": 2}, {"device": "cpu"}, {"dtype": "float16"}])
def test_settings_of_the_key_keep_runs_apart(
    base: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    found = against(base, Made(edit=lambda cell: replace(cell, **change)), tmp_path)
    [line] = found.lines
    assert (line.verdict, line.reason.partition(":")[0]) == (Verdict.NOT_COMPARABLE, *change)


def test_runs_without_cells_are_not_comparable(base: Path) -> None:
    """Two of them hold nothing that could be worse, and nothing was judged."""
    none = Evidence.of("NEW", without_cells())
    alike = judge(replace(none, name="BASE"), none, Rules())
    assert (alike.exit_code, alike.counts) == (3, {Verdict.NOT_COMPARABLE: 2})
    found = judge(evidence(base), none, Rules())
    assert [line.reason for line in found.lines] == ["NEW has no cell"] and found.exit_code == 3


def test_runs_of_which_nothing_is_gated_do_not_pass() -> None:
    """Eager cells decide nothing by default, and there is nothing else."""
    eager = Made(edit=lambda cell: cell if cell.scope is Scope.EAGER else None, costs=())
    found = both(eager, eager)
    (line,) = found.gated
    assert (line.verdict, found.exit_code) == (Verdict.NOT_COMPARABLE, 3)
    assert line.reason == "nothing is gated: --gate LIST,eager gates eager cells too"
    assert both(eager, eager, gate=Gate.parse("eager")).exit_code == 0


def test_an_unfinished_run_is_not_comparable(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(finish=False), tmp_path)
    reason = found.lines[0].reason
    assert reason is not None and "NEW is not finished. This goes on: cgbench run " in reason
    assert reason.endswith("--resume")
    assert found.exit_code == 3


def test_versions_differ_and_do_not_block(base: Path, tmp_path: Path) -> None:
    plain = h200_record()
    environment = plain.environment | {"torch": "2.13.0", "driver": "590.2"}
    made = Made(record={"environment": environment, "arguments": plain.arguments | {"x": 1}})
    found = against(base, made, tmp_path)
    assert found.differences == (
        "driver: 580.1 in BASE, 590.2 in NEW",
        "torch: 2.11.0 in BASE, 2.13.0 in NEW",
        "--x: None in BASE, 1 in NEW",
    )
    assert found.exit_code == 0


def on_cpu(cell: Cell) -> Cell:
    return replace(cell, device="cpu", dtype="float32")


def test_times_of_two_processors_are_not_compared() -> None:
    plain = h200_record()
    runs = [
        Made(edit=on_cpu, record={"environment": plain.environment | {"cpu": name}})
        for name in ("Xeon", "EPYC")
    ]
    found = both(*runs, gate=Gate.parse("acceptance,eager"))
    assert (at(found, "TPOT").verdict, at(found, "TPOT").reason) == (
        Verdict.NOT_COMPARABLE,
        "the CPUs differ",
    )
    assert at(found, "tokens").gated and found.exit_code == 0


def exact(tokens: str) -> Made:
    return Made(edit=lambda cell: replace(cell, dtype="float32", tokens_sha256=tokens))


def test_other_float32_tokens_are_a_regression_unless_allowed() -> None:
    sides = [evidence_of(exact(tokens)) for tokens in ("aaaa", "bbbb")]
    strict, allowed = (judge(*sides, Rules(allow_token_change=allow)) for allow in (False, True))
    assert (at(strict, "tokens").verdict, strict.exit_code) == (Verdict.REGRESSED, 1)
    assert "--allow-token-change" in at(strict, "tokens").reason
    assert (at(allowed, "tokens").verdict, allowed.exit_code) == (Verdict.CHANGED, 0)


def test_other_tokens_in_lower_precision_are_reported(base: Path, tmp_path: Path) -> None:
    found = against(base, Made(edit=only({"tokens_sha256": "bead"})), tmp_path)
    assert (at(found, "tokens").verdict, at(found, "tokens").gated) == (Verdict.CHANGED, False)
    assert found.exit_code == 0


CHANGED = Made(
    edit=only({"mode": Mode.EAGER, "bucket": None, "padding_frac": None}),
    record={"plans": [{"spec_tokens": 2, "batch_sizes": [1, 4]}]},
    costs=(make_cost(Phase.ITERATION, bucket=8, nodes=101, driver_bytes=0),),
)


def test_facts_are_compared_exactly_and_reported(base: Path, tmp_path: Path) -> None:
    found = against(base, CHANGED, tmp_path)
    changed = [line for line in found.lines if line.verdict is Verdict.CHANGED]
    assert [(line.what, line.base, line.new) for line in changed] == [
        ("buckets", "1,8", "1,4"),
        ("graphs", 2, 1),
        ("nodes", 100, 101),
        ("driver_bytes", 512, 0),
        ("mode", "graph", "eager"),
        ("bucket", 8, None),
    ]
    assert found.exit_code == 0


def test_gate_facts_allows_no_change_but_of_the_drivers_own_bytes(
    base: Path, tmp_path: Path
) -> None:
    found = against(base, CHANGED, tmp_path, gate=Gate.parse("facts"))
    regressed = [line.what for line in found.lines if line.verdict is Verdict.REGRESSED]
    assert regressed == ["buckets", "graphs", "nodes", "mode", "bucket"]
    assert found.exit_code == 1


def test_capture_time_is_paired_by_graph(base: Path, tmp_path: Path) -> None:
    slow = tuple(make_cost(Phase.ITERATION, bucket=b, capture_s=0.045) for b in (8, 1))
    found = against(base, Made(costs=slow), tmp_path, gate=Gate.parse("capture"))
    [line] = found.gated
    assert (line.verdict, line.base, line.new) == (Verdict.REGRESSED, 60, pytest.approx(120))


def test_samples_that_are_gone_are_not_the_same(base: Path, tmp_path: Path) -> None:
    path = Made().write(tmp_path / "new")
    samples = pd.read_parquet(path / "samples.parquet")
    samples[samples["scope"] != "iteration"].to_parquet(path / "samples.parquet", index=False)
    found = compare(base, path, Rules())
    line = at(found, "iteration latency")
    assert (line.verdict, line.reason) == (Verdict.NOT_COMPARABLE, "not in NEW")
    assert found.exit_code == 3


def test_a_truncated_file_is_named(base: Path, tmp_path: Path) -> None:
    path = Made().write(tmp_path / "new")
    file = path / "samples.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RunDirectoryError, match=r"samples\.parquet: damaged"):
        compare(base, path, Rules())


def test_a_thin_baseline_gives_the_same_lines(base: Path, tmp_path: Path) -> None:
    thin_base = tmp_path / "results" / "baselines" / "h200"
    assert write_thin(base, thin_base) < 100_000
    new = Made(seed=1, slower=1.01).write(tmp_path / "new")
    full, small = (compare(path, new, Rules()) for path in (base, thin_base))
    assert full.lines == small.lines and full.level == small.level
    assert RunDirectory.open(thin_base).record.thin
    assert (thin_base / "latency.csv").read_bytes() == (base / "latency.csv").read_bytes()


def test_a_thin_baseline_keeps_the_limits_and_not_the_accounts(base: Path, tmp_path: Path) -> None:
    file = base / "run.json"
    text = file.read_text()
    limits = {"read_bytes_per_s": 4e12, "flops_per_s": 8e14}
    account = {"scope": "eager", "spec_tokens": 0, "batch_size": 1, "context_len": 256.0}
    floor = {"limits": limits, "accounts": [account | {"lines": []}] * 1000}
    file.write_text(json.dumps(json.loads(text) | {"floor": floor}))
    try:
        write_thin(base, tmp_path / "thin")
    finally:
        file.write_text(text)
    assert RunDirectory.open(tmp_path / "thin").record.floor == {"limits": limits}


def test_thin_of_thin_is_no_thinner(base: Path, tmp_path: Path) -> None:
    write_thin(base, tmp_path / "once")
    write_thin(tmp_path / "once", tmp_path / "twice")
    for name in ("run.json", "samples.parquet"):
        once, twice = ((tmp_path / run / name).read_bytes() for run in ("once", "twice"))
        assert once == twice


def test_a_thin_baseline_over_its_limit_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thin, "MAX_BYTES", 1000)
    with pytest.raises(CannotError, match=r"--thin-baseline: .* over the 1000"):
        write_thin(base, tmp_path / "thin")
    assert list(tmp_path.iterdir()) == []


def test_what_a_thin_baseline_refuses(base: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="exists already"):
        write_thin(base, base)
    unfinished = Made(finish=False).write(tmp_path / "unfinished")
    with pytest.raises(RunDirectoryError, match="not finished"):
        write_thin(unfinished, tmp_path / "thin")
