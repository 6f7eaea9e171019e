"""Options of a run, with what a test wants changed."""

from typing import Any

from cgbench.planning import CaptureUnit
from cgbench.request.acceptance_setting import AcceptanceSetting
from cgbench.request.choices import Role
from cgbench.request.options import RunOptions
from cgbench.words import Scope


def make_options(**changes: Any) -> RunOptions:
    values: dict[str, Any] = {
        "spec_tokens": (0, 3),
        "batch_sizes": (1, 2),
        "scopes": (Scope.EAGER,),
        "max_batch_size": 8,
        "policy": "scaled",
        "capture_sizes": (),
        "capture_unit": CaptureUnit.REQUESTS,
        "role": Role.MIXED,
        "max_num_batched_tokens": 8192,
        "max_new_tokens": 64,
        "context_len": 256,
        "iterations": 10,
        "acceptance": "greedy",
        "ignore_eos": False,
        "seed": 0,
    }
    values |= changes
    acceptance = AcceptanceSetting.parse(values.pop("acceptance"), values["spec_tokens"])
    return RunOptions(**values, acceptance=acceptance)


def batch_sizes(options: RunOptions) -> dict[int, tuple[int, ...]]:
    return {k: plan.batch_sizes for k, plan in options.plans().items()}
