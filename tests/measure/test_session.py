"""A session is made whole: nothing about it is set later, but what its clock counts."""

from dataclasses import FrozenInstanceError, fields
from types import SimpleNamespace

import pytest

from cgbench.measure import run_clock
from cgbench.measure.run_clock import Clock
from cgbench.measure.session import Session
from tests.support.bigram import WRONG_AFTER, make_bigram
from tests.support.session import make_session


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return make_session(make_bigram(tmp_path_factory.mktemp("bigram"), WRONG_AFTER))


@pytest.mark.parametrize("name", [*(field.name for field in fields(Session)), "audit_s"])
def test_nothing_is_set_from_outside(session: Session, name: str) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        setattr(session, name, None)


def test_the_clock_tells_audits_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter((10.0, 12.0, 15.0, 20.0, 21.0, 30.0))
    monkeypatch.setattr(run_clock, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    clock = Clock()
    with clock.auditing():
        pass
    with clock.auditing():
        pass
    assert (clock.audit_s, clock.run_s) == (4.0, 20.0)
