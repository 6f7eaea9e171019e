"""Parts as Python makes them: lists, words and paths are taken, anything else is one clear line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cgbench.errors import BadInputError
from cgbench.request import (
    AuditRequest,
    CaptureRequest,
    HeadWiring,
    ModelRequest,
    RunRequest,
    SharingRequest,
    TimingRequest,
    WorkloadRequest,
)
from cgbench.request.choices import Device, Dtype, NormSide
from cgbench.words import Scope

anything: Any = lambda value: value  # noqa: E731


def test_lists_and_ranges_are_sets_that_ascend() -> None:
    assert WorkloadRequest(batch_sizes=anything([4, 1, 4])).batch_sizes == (1, 4)
    assert WorkloadRequest(batch_sizes=anything(range(1, 4))).batch_sizes == (1, 2, 3)
    capture = CaptureRequest(spec_tokens=anything([3, 0]), scopes=anything(["phase", "eager"]))
    assert capture.spec_tokens == (0, 3) and capture.scopes == (Scope.EAGER, Scope.PHASE)


def test_names_keep_their_order() -> None:
    assert AuditRequest(checks=anything(["limits", "equality"])).checks == ("limits", "equality")


def test_words_become_their_enums() -> None:
    model = ModelRequest(dtype=anything("bfloat16"), wiring=HeadWiring(hidden_in=anything("pre")))
    assert model.dtype is Dtype.BFLOAT16 and model.wiring.hidden_in is NormSide.PRE
    assert RunRequest(device=anything("cpu")).device is Device.CPU


def test_a_path_and_a_whole_number_do_for_text_and_a_number() -> None:
    assert ModelRequest(ref=anything(Path("a") / "b")).ref == "a/b"
    assert type(TimingRequest(max_time_s=2).max_time_s) is float


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: WorkloadRequest(batch_sizes=()), "--batch-sizes: is empty. Give at least one"),
        (lambda: CaptureRequest(spec_tokens=anything([])), "--spec-tokens: is empty. Give at"),
        (lambda: CaptureRequest(scopes=()), "--scopes: is empty. Give at least one"),
        (lambda: WorkloadRequest(batch_sizes=anything(4)), "--batch-sizes 4: must be a list"),
        (lambda: WorkloadRequest(batch_sizes=anything([True])), "--batch-sizes true: must be a"),
        (lambda: CaptureRequest(spec_tokens=anything("3")), "--spec-tokens 3: must be a list"),
        (lambda: CaptureRequest(scopes=anything(["x"])), "--scopes x: choose of eager,phase,"),
        (lambda: ModelRequest(dtype=anything(float)), "--dtype \"<class 'float'>\": choose of"),
        (lambda: ModelRequest(ref=anything(None)), "MODEL null: must be text"),
        (lambda: HeadWiring(hidden_in=anything("x")), "--head-hidden x: choose of pre,post"),
        (lambda: RunRequest(model=anything("default")), "model default: must be a ModelRequest"),
        (lambda: SharingRequest(tp=0), "--tp 0: must be at least 1"),
        (lambda: TimingRequest(processes=0), "--processes 0: must be at least 1"),
        (lambda: TimingRequest(processes=1001), "--processes 1001: must be at most 1,000"),
    ],
)
def test_another_type_is_one_line_that_names_the_flag(
    make: Callable[[], object], line: str
) -> None:
    with pytest.raises(BadInputError) as raised:
        make()
    assert str(raised.value).startswith(line) and "\n" not in str(raised.value)


def test_lists_whose_default_is_empty_may_be_empty() -> None:
    assert CaptureRequest(capture_sizes=anything([])).capture_sizes == ()
    assert AuditRequest(checks=anything([])).checks == ()
