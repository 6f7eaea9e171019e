"""The share of an iteration that collectives take."""

from cgbench.rundir.collective_share import collective_shares
from cgbench.rundir.schema import Sample
from cgbench.words import Mode, Scope, Stage


def sample(scope: Scope, stage: Stage, seconds: float) -> Sample:
    return Sample(scope, 1, 2, Mode.GRAPH, 0, 0, stage, seconds, None)


def test_a_cell_whose_blocks_were_all_discarded_has_no_share() -> None:
    samples = [
        sample(Scope.PHASE, Stage.COLLECTIVES, 1e-4),
        sample(Scope.ITERATION, Stage.COLLECTIVES, 1e-4),
        sample(Scope.ITERATION, Stage.ITERATION, 1e-3),
    ]
    (share,) = collective_shares(samples)
    assert (share.scope, share.spec_tokens, share.batch_size) == ("iteration", 1, 2)
    assert share.frac == 0.1
