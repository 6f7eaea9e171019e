"""Workloads: named, histograms, logs, and what is refused."""

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    "text",
    [
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
