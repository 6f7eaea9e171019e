"""Progress of another process: what is sent is what is replayed, to its end or its failure."""

import io

import pytest

from cgbench.door.relay import Relay, replay
from cgbench.progress import Progress
from tests.support.progress import Kept


def report(to: Progress) -> None:
    to.say("a note, in any letters: Γ \udcff")
    with to.working("load"):
        pass
    with to.bar("audit", 2) as bar:
        for name in ("equality", "drafts"):
            bar.at(name)
            bar.advance()
    to.log("line\nof a log")


def test_every_call_is_replayed_as_it_was_made() -> None:
    sent, made, replayed = io.StringIO(), Kept(), Kept()
    report(made)
    report(Relay(sent))
    assert sent.getvalue().isascii()
    assert replay(iter(sent.getvalue().splitlines()), replayed) is None
    assert replayed.calls == made.calls and len(made.calls) == 10


def test_a_failure_ends_what_was_begun() -> None:
    sent, replayed = io.StringIO(), Kept()
    relay = Relay(sent)
    with pytest.raises(ValueError, match="broken"), relay.bar("audit", 2):
        raise ValueError("broken")
    relay.fail("broken")
    lines = [*sent.getvalue().splitlines(), '["say", "never"]']
    assert replay(iter(lines), replayed) == "broken"
    assert replayed.calls == [("bar", "audit", 2), ("done", "audit")]


def test_a_process_that_dies_ends_what_it_began() -> None:
    replayed = Kept()
    assert replay(iter(['["working", "load"]']), replayed) is None
    assert replayed.calls == [("working", "load"), ("worked", "load")]
