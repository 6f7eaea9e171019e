"""A decode backend of the user's own: found by name, run, and held to the audit."""

import sys
from pathlib import Path

import pytest
import torch

from cgbench.checks import hidden
from cgbench.checks.findings import Answer
from cgbench.engine.backends import DECODE_BACKENDS, resolve_backend
from cgbench.errors import BadInputError
from cgbench.measure.group import measure_group
from cgbench.words import Status
from tests.support.audited import make_deployment, make_session, subject_of
from tests.support.tiny import load_tiny, make_checkpoint

CPU = torch.device("cpu")

SOURCE = """
from cgbench.engine.backends import sdpa_decode

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
    """A module in the folder that the command is given in."""
    (tmp_path / "my_kernels.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/somewhere/else"])
    monkeypatch.delitem(sys.modules, "my_kernels", raising=False)


def verdict(folder: Path, attention: str) -> Answer:
    deployment = make_deployment(folder, attention=attention)
    return hidden.run(subject_of(deployment)).answer


def test_a_backend_is_found_in_the_current_folder_and_run(tmp_path: Path) -> None:
    assert verdict(make_checkpoint(tmp_path / "m", "llama"), "my_kernels:right") is Answer.HOLDS
    import my_kernels

    assert my_kernels.calls


def test_a_backend_comes_with_its_function_and_leaves_no_trace() -> None:
    backend = resolve_backend("my_kernels:right", CPU)
    assert (backend.name, backend.decode.__module__) == ("my_kernels:right", "my_kernels")
    assert backend.decode.__name__ == "right"
    assert set(DECODE_BACKENDS) == {"sdpa", "triton"}
    assert sys.path == ["/somewhere/else"]


def test_a_module_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "my_kernels.py").write_text("raise RuntimeError('no')")
    with pytest.raises(BadInputError, match="my_kernels:right: RuntimeError: no"):
        resolve_backend("my_kernels:right", CPU)
    assert sys.path == ["/somewhere/else"]


def test_paths_that_a_module_adds_itself_stay(tmp_path: Path) -> None:
    source = f"import sys\nsys.path.insert(0, '/its/own')\n{SOURCE}"
    (tmp_path / "my_kernels.py").write_text(source)
    resolve_backend("my_kernels:right", CPU)
    assert sys.path == ["/its/own", "/somewhere/else"]


def test_auto_is_the_reference_on_a_cpu() -> None:
    found = resolve_backend("auto", CPU)
    assert found == ("sdpa", DECODE_BACKENDS["sdpa"], True)


@pytest.mark.parametrize(
    ("name", "kind", "runs", "keeps_latents"),
    [
        ("auto", "deepseek_v3", "latent", True),
        ("latent", "deepseek_v3", "latent", True),
        ("sdpa", "deepseek_v3", "sdpa", False),
        ("auto", "llama", "sdpa", True),
        ("sdpa", "llama", "sdpa", False),
    ],
)
def test_latents_are_kept_unless_another_attention_is_asked_for(
    tmp_path: Path, name: str, kind: str, runs: str, keeps_latents: bool
) -> None:
    backend = resolve_backend(name, CPU)
    assert backend.keeps_latents is keeps_latents
    model = load_tiny(make_checkpoint(tmp_path, kind), keeps_latents=backend.keeps_latents)
    assert model.keeps_latents is (runs == "latent")
    assert backend.of(model).name == runs


def test_latents_of_a_model_without_them_are_bad_input(tmp_path: Path) -> None:
    model = load_tiny(make_checkpoint(tmp_path, "llama"))
    with pytest.raises(BadInputError, match=r"--attention latent: .* has no latent attention"):
        resolve_backend("latent", CPU).of(model)


def test_a_wrong_backend_is_caught_by_the_audit(tmp_path: Path) -> None:
    assert verdict(make_checkpoint(tmp_path / "m", "llama"), "my_kernels:wrong") is Answer.WRONG


@pytest.mark.parametrize(("dtype", "num_failed"), [(torch.float32, 2), (torch.bfloat16, 0)])
def test_a_backend_that_is_wrong_at_every_k_is_timed_in_lower_precision_alone(
    tmp_path: Path, dtype: torch.dtype, num_failed: int
) -> None:
    """All cells agree with each other: in float32 a prefill tells, below only the whole audit."""
    folder = make_checkpoint(tmp_path / "m", "mimo")
    session = make_session(folder, attention="my_kernels:wrong", dtype=dtype)
    group = measure_group(session, 2, lambda: None)
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
        ("flash", "Choose auto"),
    ],
)
def test_one_that_cannot_be_had_is_bad_input(name: str, why: str) -> None:
    with pytest.raises(BadInputError, match=f"--attention {name}: .*{why}"):
        resolve_backend(name, CPU)
