"""This tool's rows: every k has iterations to time, and stays in its KV rows."""

import pytest

from cgbench.engines.iterations import NO_GRAPHS, OwnEngine
from cgbench.engines.peer_rounds import PeerError
from cgbench.measure.session import Session
from cgbench.workload.load import Workload
from tests.support.options import make_options
from tests.support.session import session_of
from tests.support.tiny import load_tiny, make_checkpoint, random_prompts

CONTEXT_LEN = 12
K = 8


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = make_checkpoint(tmp_path_factory.mktemp("own") / "tiny", "mimo")
    options = make_options(
        spec_tokens=(0, K),
        batch_sizes=(1,),
        max_batch_size=1,
        max_new_tokens=8,
        context_len=CONTEXT_LEN,
        iterations=1,
    )
    prompts = tuple(map(tuple, random_prompts(3)))
    return session_of(load_tiny(folder), options, Workload("random", prompts))


@pytest.fixture(scope="module")
def engine(session: Session) -> OwnEngine:
    contexts = session.workload.contexts(1, CONTEXT_LEN)
    return OwnEngine(session.deployment, session.options, contexts, K)


@pytest.mark.parametrize(("name", "spec_tokens"), [("eager", K), ("eager-k0", 0)])
def test_every_k_has_iterations_to_time_and_stays_in_its_kv_rows(
    session: Session, engine: OwnEngine, name: str, spec_tokens: int
) -> None:
    round_ = engine.peers()[name]().round(0)
    lengths = session.deployment.states[spec_tokens].rows(1).seq_len
    assert round_.steps >= 7 and round_.seconds > 0
    assert int(lengths.max()) + 2 * spec_tokens <= session.spec.cache.room


def test_a_round_without_drafts_gives_a_token_an_iteration(engine: OwnEngine) -> None:
    round_ = engine.peers()["eager-k0"]().round(0)
    assert round_.tokens == round_.steps


def test_verify_reads_k_and_one_tokens_a_request(engine: OwnEngine) -> None:
    round_ = engine.peers()["verify"]().round(0)
    assert round_.tokens == round_.steps * (K + 1)


@pytest.mark.parametrize("name", ["iteration", "phase", "iteration-k0", "phase-k0"])
def test_without_graphs_a_peer_says_so(engine: OwnEngine, name: str) -> None:
    with pytest.raises(PeerError, match=NO_GRAPHS):
        engine.peers()[name]()
