"""What is exported is read back by the readers of engines' launch lines, and leaves no hole."""

import re
from pathlib import Path

import pytest

from cgbench.advice.schedule_options import EngineOption, options_for, refusals_of
from cgbench.advice.tiers import KTier
from cgbench.planning.draft_schedule import DraftSchedule, Tier
from cgbench.planning.launch_lines import Launch, read_launch
from cgbench.planning.study import outcome_of
from cgbench.planning.tier_plans import deployment_of

SCHEDULES = {
    "two tiers": (KTier(1, 2, 3), KTier(3, 64, 2)),
    "odd ends": (KTier(1, 7, 4), KTier(8, 19, 2), KTier(20, 33, 1), KTier(34, 64, 0)),
    "none first": (KTier(1, 8, 0), KTier(9, 64, 1)),
    "none between": (KTier(1, 2, 1), KTier(3, 10, 0), KTier(11, 48, 2)),
}
FIXED = (KTier(1, 48, 3),)
REFUSED = {("none first", "tensorrt-llm"), ("none between", "tensorrt-llm")}
"""Their smallest batches do not draft the longest k."""


def read_back(option: EngineOption, most: int, folder: Path) -> Launch:
    """The option in a launch line of its engine, or in the file that the line names."""
    if option.engine == "tensorrt-llm":
        file = folder / "config.yaml"
        file.write_text(f"{option.text}\nmax_batch_size: {most}\n")
        return read_launch(f"trtllm-serve M --config {file}", None, None)
    if option.engine == "vllm":
        return read_launch(f"vllm serve M --max-num-seqs {most} {option.text}", None, None)
    line, *rest = option.text.split("\n")
    if rest:
        file = folder / "adaptive.json"
        file.write_text(rest[-1])
        line = line.replace("adaptive.json", str(file))
    start = f"python -m sglang.launch_server --model-path M --max-running-requests {most}"
    return read_launch(f"{start} {line}", None, None)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm", "sglang"])
def test_a_schedule_is_read_back_as_it_was(name: str, engine: str, tmp_path: Path) -> None:
    tiers = SCHEDULES[name]
    options = {option.engine: option for option in options_for(tiers)}
    if (name, engine) in REFUSED:
        assert engine not in options and "smallest batches" in refusals_of(tiers)[engine]
        return
    assert engine not in refusals_of(tiers)
    option = options[engine]
    launch = read_back(option, tiers[-1].last, tmp_path)
    assert launch.warnings == ()
    assert launch.schedule is not None
    expected = tuple(Tier(tier.first, tier.last, (tier.k,)) for tier in tiers)
    assert launch.schedule.tiers == expected
    assert deployment_of(launch.request, launch.schedule).eager_batch_sizes == ()


@pytest.mark.parametrize("engine", [0, 1, 2])
def test_a_fixed_k_is_read_back_and_every_batch_size_has_a_graph(
    engine: int, tmp_path: Path
) -> None:
    launch = read_back(options_for(FIXED)[engine], 48, tmp_path)
    assert launch.warnings == () and launch.schedule is None
    assert launch.request.spec_tokens == 3
    alone = DraftSchedule((Tier(1, 48, (3,)),))
    assert deployment_of(launch.request, alone).eager_batch_sizes == ()


def test_no_drafts_anywhere_need_no_option() -> None:
    assert options_for([KTier(1, 64, 0)]) == ()


@pytest.mark.parametrize(
    "tiers", [FIXED, SCHEDULES["two tiers"], (KTier(1, 40, 8), KTier(41, 64, 2))]
)
def test_which_batches_have_no_graph_is_what_plan_finds(
    tiers: tuple[KTier, ...], tmp_path: Path
) -> None:
    """The graphs of a longer k hold more requests of a shorter one."""
    [option] = [each for each in options_for(tiers) if each.engine == "vllm"]
    without = re.search(r"above (\d+)[^,]*,(?: those above (\d+))? without a graph", option.note)
    assert without
    launch = read_back(option, 200, tmp_path)
    if launch.schedule is None:
        eager = outcome_of(launch.request).any_phase_eager
    else:
        eager = deployment_of(launch.request, launch.schedule).eager_batch_sizes
    assert eager[0] == int(without[2] or without[1]) + 1
