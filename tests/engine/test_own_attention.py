"""A decode backend of the user's own: found by name, run, and held to the audit."""

from pathlib import Path

import pytest
import torch

from cgbench.checks import hidden
from cgbench.checks.findings import Verdict
from cgbench.engine.attention import DECODE_BACKENDS, resolve_backend
from cgbench.errors import BadInputError
from cgbench.measure.group import measure_group
from cgbench.words import Status
from tests.support.audited import make_deployment, make_session, subject_of
from tests.support.tiny import make_checkpoint

CPU = torch.device("cpu")

SOURCE = """
from cgbench.engine.attention import sdpa_decode

calls = []

def right(kv, rows, qkv):
    calls.append(qkv.query.shape)
    return sdpa_decode(kv, rows, qkv)

def wrong(kv, rows, qkv):
    return sdpa_decode(kv, rows, qkv._replace(scaling=1.5 * qkv.scaling))

number = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the folder that the command is given in; what is registered is forgotten."""
    (tmp_path / "my_kernels.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/somewhere/else"])
    monkeypatch.delitem(__import__("sys").modules, "my_kernels", raising=False)
    for name in ("right", "wrong"):
        monkeypatch.setitem(DECODE_BACKENDS, f"my_kernels:{name}", None)


def verdict(folder: Path, attention: str) -> Verdict:
    deployment = make_deployment(folder, attention=resolve_backend(attention, CPU))
    return hidden.run(subject_of(deployment)).verdict


def test_a_backend_is_found_in_the_current_folder_and_run(tmp_path: Path) -> None:
    assert verdict(make_checkpoint(tmp_path / "m", "llama"), "my_kernels:right") is Verdict.HOLDS
    import my_kernels

    assert my_kernels.calls


def test_a_wrong_backend_is_caught_by_the_audit(tmp_path: Path) -> None:
    assert verdict(make_checkpoint(tmp_path / "m", "llama"), "my_kernels:wrong") is Verdict.WRONG


@pytest.mark.parametrize(("dtype", "num_failed"), [(torch.float32, 2), (torch.bfloat16, 0)])
def test_a_backend_that_is_wrong_at_every_k_is_timed_in_lower_precision_alone(
    tmp_path: Path, dtype: torch.dtype, num_failed: int
) -> None:
    """All cells agree with each other: in float32 a prefill tells, below only the whole audit."""
    folder = make_checkpoint(tmp_path / "m", "mimo")
    backend = resolve_backend("my_kernels:wrong", CPU)
    group = measure_group(make_session(folder, attention=backend, dtype=dtype), 2, lambda: None)
    assert len(group.failures) == num_failed
    expected = Status.AUDIT_FAILED if num_failed else Status.OK
    assert {cell.status for cell in group.cells} == {expected}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my_kernels:missing", "has no attribute"),
        ("nowhere_at_all:f", "No module named"),
        ("my_kernels:number", "not a function"),
        (":f", "must be package.module:function"),
        ("flash", "choose auto"),
    ],
)
def test_one_that_cannot_be_had_is_bad_input(name: str, why: str) -> None:
    with pytest.raises(BadInputError, match=f"--attention {name}: .*{why}"):
        resolve_backend(name, CPU)
