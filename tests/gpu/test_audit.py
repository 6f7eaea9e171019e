"""The unmutated engine passes the audit on a device, with real graphs, whatever the seed."""

from pathlib import Path

import pytest

from cgbench.measure.audit.checks import run_audit
from cgbench.measure.audit.findings import Verdict
from cgbench.measure.audit.subject import make_subject
from cgbench.measure.bench import capture_all
from cgbench.models.families import QWEN
from cgbench.report.schema import Scope
from tests.measure.audited import make_bench
from tests.tiny import HYBRID_CONFIGS, make_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("seed", range(50))
def test_the_unmutated_engine_passes(tmp_path: Path, seed: int) -> None:
    passes(make_checkpoint(tmp_path, "mimo", seed=seed), seed)


@pytest.mark.parametrize("kind", HYBRID_CONFIGS)
def test_hybrids_pass(tmp_path: Path, kind: str) -> None:
    passes(make_checkpoint(tmp_path, kind, seed=5, family=QWEN), seed=0)


def passes(folder: Path, seed: int) -> None:
    bench = make_bench(folder, seed=seed, device="cuda", attention="triton", scopes=tuple(Scope))
    capture_all(bench, lambda: None)
    findings = run_audit(make_subject(bench, seed), lambda _: None)
    bench.release()
    assert not [finding for finding in findings if finding.verdict is Verdict.WRONG]
