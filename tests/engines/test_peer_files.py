"""A killed command loses no round, and a file of something else is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cgbench.engines import peer_files
from cgbench.engines.peer_rounds import WARMUP_ROUNDS, measure
from cgbench.engines.peer_rows import Result, Round
from cgbench.errors import BadInputError, OutputError
from tests.support.peers import FACTS, Recorded

RECORDED = Path(__file__).parents[2] / "results" / "h200" / "peers"
ROWS = [Result("iteration", [Round(0.5, 10, 20.0)], calls=1)]


def test_a_command_that_is_killed_loses_no_round_and_the_next_one_goes_on(tmp_path: Path) -> None:
    output, log = tmp_path / "mimo-7b.k3", list[str]()
    words = {"a": "iteration", "b": "dynamic"}
    makers = {name: partial(Recorded, name, log) for name in words}
    killed: list[int] = []

    def keep(results: list[Result]) -> None:
        named = [replace(each, name=words[each.name]) for each in results]
        peer_files.write(output, FACTS, named, "the tables\n")
        killed.extend(len(result.rounds) for result in results)
        if killed[-2:] == [2, 2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(makers, seconds=0, max_rounds=5, keep=keep)
    assert {file.name for file in tmp_path.iterdir()} == {"mimo-7b.k3.json", "mimo-7b.k3.md"}
    assert (tmp_path / "mimo-7b.k3.md").read_text() == "the tables\n"
    found = peer_files.open_output(output).results_of(replace(FACTS, command="another"))
    assert [(row.name, len(row.rounds), row.calls) for row in found] == [
        ("iteration", 2, 1),
        ("dynamic", 2, 1),
    ]
    log.clear()
    more = {name: partial(Recorded, name, log) for name in ("iteration", "static")}
    found[1].reason = "failed"
    rows = measure(more, found, seconds=100, max_rounds=5)
    counts = {row.name: (len(row.rounds), row.calls) for row in rows}
    assert counts == {"iteration": (5, 2), "static": (5, 1), "dynamic": (2, 1)}
    assert [each for each in log if each.startswith("iteration")][WARMUP_ROUNDS:] == [
        f"iteration{i}" for i in (2, 3, 4)
    ]


def test_rows_of_another_setting_are_refused(tmp_path: Path) -> None:
    peer_files.write(tmp_path / "x", FACTS, ROWS, "")
    found = peer_files.open_output(tmp_path / "x")
    assert found.results_of(FACTS) == ROWS
    with pytest.raises(BadInputError, match=r"x\.json is of another batch_size. Choose another"):
        found.results_of(replace(FACTS, batch_size=3))


def test_where_nothing_was_there_is_no_row(tmp_path: Path) -> None:
    assert peer_files.open_output(tmp_path / "new" / "x").results_of(FACTS) == []


def test_what_the_script_of_before_wrote_is_read() -> None:
    found = peer_files.open_output(RECORDED)
    assert {row.name for row in found.results} > {"iteration", "dynamic", "verify-compiled"}
    assert all(row.rounds for row in found.results)


def first_round(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda made: made["peers"][0]["rounds"][0].update(changes)


def first_row(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda made: made["peers"][0].update(changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: made.pop("peers"),
        lambda made: made.update(peers=3),
        lambda made: made.update(peers=["iteration"]),
        first_row(name="bogus"),
        first_row(name=["iteration"]),
        first_row(reason=3),
        first_row(calls="1"),
        first_row(more=1),
        first_row(rounds=None),
        first_round(seconds=0),
        first_round(seconds=float("inf")),
        first_round(seconds=float("nan")),
        first_round(steps=0),
        first_round(steps=2.5),
        first_round(tokens=-1),
        first_round(tokens="20"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    peer_files.write(tmp_path / "x", FACTS, ROWS, "")
    file = tmp_path / "x.json"
    made = json.loads(file.read_text())
    damage(made)
    file.write_text(json.dumps(made))
    with pytest.raises(BadInputError) as error:
        peer_files.open_output(tmp_path / "x")
    assert str(error.value) == f"{file} holds no comparison of peers. Choose another --output"


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '"text"', "null"])
def test_a_file_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInputError, match=r"x\.json"):
        peer_files.open_output(tmp_path / "x")


def test_an_output_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "y.json").mkdir()
    for output in (Path("."), tmp_path / "file" / "x", tmp_path / "y"):
        with pytest.raises(BadInputError, match=str(output)):
            peer_files.open_output(output)


def test_a_folder_that_goes_away_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        peer_files.write(tmp_path / "gone" / "x", FACTS, ROWS, "")
