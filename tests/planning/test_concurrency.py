"""Workloads: named, histograms, logs, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cgbench.errors import BadInputError
from cgbench.planning import Concurrency


def test_constant() -> None:
    assert Concurrency.parse("constant:3").over(4) == [0, 0, 1, 0]


def test_uniform() -> None:
    assert Concurrency.parse("uniform:2-3").over(4) == [0, 0.5, 0.5, 0]


def test_geometric_has_its_mean() -> None:
    weights = Concurrency.parse("geometric:8").over(1000)
    assert sum(weights) == pytest.approx(1)
    assert sum(n * w for n, w in enumerate(weights, start=1)) == pytest.approx(8)
    assert weights[1] / weights[0] == pytest.approx(7 / 8)


def test_geometric_with_a_mean_of_one_is_one_request() -> None:
    assert Concurrency.parse("geometric:1").weights == ((1, 1.0),)


def test_a_workload_states_that_larger_batches_count_as_the_largest() -> None:
    assert Concurrency.parse("constant:64").words(64) == "constant:64"
    assert Concurrency.parse("constant:65").words(64) == "constant:65, more than 64 counted as 64"
    # A geometric tail never ends, and rounds to nothing.
    assert Concurrency.parse("geometric:8").words(64) == "geometric:8"
    assert Concurrency.parse("geometric:8").words(32).endswith(", more than 32 counted as 32")


def test_more_requests_than_run_at_once_count_as_the_maximum() -> None:
    assert Concurrency.of([(2, 1), (5, 1), (9, 2)]).over(5) == [0, 0.25, 0, 0, 0.75]


FILES = {
    "histogram.csv": "batch_size,weight\n1,3\n4,0.5\n4,0.5\n",
    "no_heading.csv": "1,3\n4,1\n",
    "histogram.json": '{"1": 3, "4": 1}',
    "log.txt": "1\n1\n\n4\n1\n0\n",
    "headed_log.csv": "running\n1\n1\n1\n4\n",
    "log.json": "[1, 1, 4, 1]",
    "bom.csv": "\ufeffbatch_size,weight\n1,3\n4,1\n",
}


@pytest.mark.parametrize("name", FILES)
def test_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(FILES[name], encoding="utf-8")
    assert Concurrency.parse(str(file)).over(4) == [0.75, 0, 0, 0.25]


BAD_FILES = {
    "empty": ("", "no batch size has a weight"),
    "only_idle": ("0\n0\n", "no batch size has a weight"),
    "negative": ("-1\n", "batch size -1"),
    "negative_weight": ("1,-2\n", "weight -2"),
    "not_a_number": ("1,nan\n", "weight nan"),
    "half": ("1.5,1\n", "'1.5,1': must be batch_size,weight"),
    "words": ("1,2\nfour,1\n", "'four,1': must be"),
    "three": ("1,2,3\n", "'1,2,3': must be"),
    "json": ('{"1": ', "not JSON"),
    "json_words": ('{"one": 2}', "must be an object of batch size"),
    "json_nested": ("[[1, 2]]", "must be an object of batch size"),
    "json_deep": ("[" * 100_000, "nested too deep"),
    "json_true": ("[true]", "True is not a number"),
    "json_digits": (f"[{'9' * 5000}]", "holds a number of over 4,300 digits"),
    "json_twice": ('{"1": 1, "1": 2, "4": 1}', "key '1' is there twice"),
    "digits": (f"{'9' * 5000}\n", f"'{'9' * 39}..: must be batch_size,weight"),
    "field": (f"{'9' * 200_000}\n", "not CSV: field larger than field limit"),
    "quote": ('1\n"2\n3\n', "not CSV: unexpected end of data"),
    "huge_weights": ("1,1e308\n2,1e308\n", "the weights sum to no number"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_named(name: str, tmp_path: Path) -> None:
    text, message = BAD_FILES[name]
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(BadInputError) as caught:
        Concurrency.parse(str(file))
    assert str(file) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_size_that_a_table_has_twice_counts_twice(tmp_path: Path) -> None:
    """A CSV's rows add up, as a log's do; a key of an object is one value."""
    file = tmp_path / "twice.csv"
    file.write_text("1,1\n1,2\n4,1\n")
    assert Concurrency.parse(str(file)).over(4) == [0.75, 0, 0, 0.25]


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """Opening a pipe would wait for a writer."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "none.csv", "x" * 5000):
        with pytest.raises(BadInputError, match=r"cannot be read. Give a file, or "):
            Concurrency.parse(str(tmp_path / name))


def test_a_file_is_too_large_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sparse.csv"
    with file.open("wb") as empty:
        empty.truncate(10**12)
    with pytest.raises(BadInputError, match="1,000,000,000,000 bytes, must be at most 64,000,000"):
        Concurrency.parse(str(file))


def test_a_name_of_other_bytes_is_refused_in_words_that_can_be_printed(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.csv")
    file.write_text("1\n")
    with pytest.raises(BadInputError) as caught:
        Concurrency.parse(str(file))
    assert str(caught.value).endswith(r"\udcff.csv: the file's name must be UTF-8")
    assert str(caught.value).isascii()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.csv"
    file.write_bytes(b"\xe9,1\n")
    with pytest.raises(BadInputError, match=r"latin.csv: must be utf-8. byte 0"):
        Concurrency.parse(str(file))


numbers = st.one_of(
    st.integers(), st.floats(), st.integers(1, 9000).map("9".__mul__), st.text(max_size=5)
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
contents = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(str.encode),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(st.tuples(numbers, numbers), max_size=8).map(
        lambda rows: "".join(f"{size},{weight}\n" for size, weight in rows).encode("utf-8")
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=contents)
@example(content=b"[")
def test_any_file_is_a_workload_or_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "any"
    file.write_bytes(content)
    try:
        weights = Concurrency.parse(str(file)).over(256)
    except BadInputError as error:
        assert str(error).startswith(f"--concurrency {file}: ")
        assert "\n" not in str(error)
        return
    assert sum(weights) == pytest.approx(1)
    assert all(0 <= weight <= 1 for weight in weights)


@pytest.mark.parametrize(
    "text",
    [
        f"constant:{'9' * 5000}",
        f"uniform:1-{'9' * 5000}",
        "uniform:1-9999999999",
        "geometric:0.5",
        "geometric:many",
        "geometric:nan",
        "uniform:8",
        "uniform:0-4",
        "uniform:9-4",
        "constant:0",
        "constant:x",
        "nowhere.csv",
        "poisson:8",
    ],
)
def test_bad_name_is_said_with_its_flag(text: str) -> None:
    with pytest.raises(BadInputError, match=f"--concurrency {text}"):
        Concurrency.parse(text)
