"""The unmutated engine passes the audit on a device, with real graphs, whatever the seed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cgbench.checks.findings import Answer
from cgbench.cli.app import app
from cgbench.compile.decode import compiled
from cgbench.engine.deployment import Deployment, capture
from cgbench.models.heads.families import DEEPSEEK, MIMO, QWEN
from cgbench.request.choices import KvDtype, QuantMode
from cgbench.words import Routing, Scope
from tests.support.audited import make_deployment, run_all, subject_of
from tests.support.fp8 import make_fp8_checkpoint
from tests.support.presets import MIXTURES, shrink_presets
from tests.support.tiny import HYBRID_CONFIGS, make_checkpoint

pytestmark = pytest.mark.gpu


Prepare = Callable[[Deployment], Deployment]


def as_it_is(deployment: Deployment) -> Deployment:
    return deployment


SEEDS = range(50)
SEEDS_OF_A_MODEL = 5


@pytest.mark.parametrize("first", SEEDS[::SEEDS_OF_A_MODEL])
def test_the_unmutated_engine_passes(tmp_path: Path, first: int) -> None:
    """Fifty seeds of prompts, hints, poison and orders, five on each of ten models."""
    folder = make_checkpoint(tmp_path, "mimo", seed=first)
    passes(folder, SEEDS[first : first + SEEDS_OF_A_MODEL])


@pytest.mark.parametrize("kind", HYBRID_CONFIGS)
def test_hybrids_pass(tmp_path: Path, kind: str) -> None:
    passes(make_checkpoint(tmp_path, kind, seed=5, family=QWEN), [0])


def test_compiled_hybrids_pass(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3_5", seed=5, family=QWEN)
    passes(folder, [0], prepare=compiled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_layers_pass(tmp_path: Path, dtype: torch.dtype) -> None:
    """Wide enough for the streamed products, which take half precision alone."""
    folder = make_checkpoint(
        tmp_path, "mimo", hidden_size=256, intermediate_size=1024, vocab_size=1024, std=0.1
    )
    passes(folder, [0], dtype=dtype, prepare=compiled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mimo", "mistral", "gpt_oss", "qwen3_5"])
def test_fp8_keys_and_values_pass(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """A dense model, a window, sinks, and a model that is mostly recurrent."""
    family = QWEN if kind == "qwen3_5" else MIMO
    folder = make_checkpoint(tmp_path, kind, seed=5, family=family)
    passes(folder, [0, 1], dtype=dtype, kv_dtype=KvDtype.FP8)


def test_compiled_layers_pass_over_fp8_keys_and_values(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "mimo", seed=5)
    passes(folder, [0], prepare=compiled, kv_dtype=KvDtype.FP8)


WIDE = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 1024, "std": 0.1}
"""Wide enough for the streamed products."""


@pytest.mark.parametrize("prepare", [as_it_is, compiled])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["mimo", "glm4_moe", "deepseek_v3"])
def test_quantised_activations_pass(
    tmp_path: Path, kind: str, dtype: torch.dtype, prepare: Prepare
) -> None:
    """Dense, mixtures, and latent attention, whose absorbed matrix is not among them."""
    family = MIMO if kind == "mimo" else DEEPSEEK
    shape = {"hidden_size": 256, "intermediate_size": 512} if kind != "mimo" else WIDE
    folder, _ = make_fp8_checkpoint(tmp_path, kind, family, **shape)
    passes(folder, [0], dtype=dtype, prepare=prepare, quant=QuantMode.W8A8)


@pytest.mark.parametrize("routing", Routing)
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_pass(monkeypatch: pytest.MonkeyPatch, name: str, routing: Routing) -> None:
    """Each preset's architecture at a tiny size, compiled, in graphs, by either routing."""
    shrink_presets(monkeypatch)
    flags = "--spec-tokens 2 --max-num-seqs 5 --capture-sizes 2,5 --max-new-tokens 6"
    args = ["audit", f"preset:{name}", *flags.split(), "--compile", "default"]
    # In lower precision the noise of so small a model is no measure of its compiled form's.
    args += ["--dtype", "float32"]
    done = CliRunner().invoke(app, [*args, "--routing", routing.value, "--json"])
    assert done.exit_code == 0, done.output


def passes(
    folder: Path,
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    kv_dtype: KvDtype = KvDtype.AUTO,
    quant: QuantMode = QuantMode.AUTO,
    prepare: Prepare = as_it_is,
) -> None:
    deployment = make_deployment(
        folder,
        seed=seeds[0],
        dtype=dtype,
        device="cuda",
        attention="triton",
        scopes=tuple(Scope),
        kv_dtype=kv_dtype,
        quant=quant,
    )
    deployment = capture(prepare(deployment), lambda: None)
    for seed in seeds:
        findings = run_all(subject_of(deployment, seed))
        wrong = [finding for finding in findings if finding.answer is Answer.WRONG]
        assert not wrong, (seed, wrong)
    deployment.release()
