"""``cgbench audit --endpoint``: what is printed, exit codes, and the folder of one failed edge."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.command import cgbench
from tests.support.completions_server import CompletionsServer
from tests.support.served import gathering, keeping, serving
from tests.support.served_faults import FAULTS

SMALL = "--num-prompts 4 --max-new-tokens 28 --repeats 0 --edges 4".split()


def flags_of(server: CompletionsServer) -> list[str]:
    plan = "--capture-sizes 1,2,4 --max-num-seqs 6 --spec-tokens 3".split()
    return ["--endpoint", server.url, *plan, *SMALL]


def test_a_sound_server() -> None:
    with serving() as server, keeping(server), gathering(server):
        done = cgbench("audit", *flags_of(server))
    assert done.code == 0, done.stderr
    assert "verify 4 to eager" in done.stdout and "5/5" in done.stdout
    assert "2 hold" in done.stdout and "exit code 0" in done.stdout
    assert "edge 4: holds" in done.stderr


def test_a_fault_is_printed_kept_and_sent_again(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    with serving(FAULTS["NeighboursSlot"]) as server, keeping(server), gathering(server):
        done = cgbench("audit", *flags_of(server), "--repro", folder, "--json")
        assert done.code == 1, done.stderr
        found = json.loads(done.stdout)
        assert found["exit_code"] == 1
        assert [edge["verdict"] for edge in found["edges"]] == ["holds", "wrong"]
        kept = json.loads((folder / "edge.json").read_text())
        assert kept["finding"]["edge"] == "4" and kept["rows"][0]["got"]
        command = next(
            line
            for line in (folder / "README.txt").read_text().splitlines()
            if "cgbench audit" in line and line.startswith("    ")
        )
        words = command.split()[1:]
        assert words[0] == "audit" and words[words.index("--edges") + 1] == "4"
        again = cgbench(*words)
        assert again.code == 1 and "WRONG" in again.stdout
        assert f"edge 4 is in {folder}" in done.stderr
        script = (folder / "request.sh").read_text()
        assert f"{server.url}/v1/completions" in script
        subprocess.run(["sh", "-n", folder / "request.sh"], check=True)


REFUSED = [
    ("--endpoint http://127.0.0.1:1 --engine vllm-0.33 --spec-tokens 3", 2, "--max-num-seqs"),
    ("--endpoint http://127.0.0.1:1 --head x", 2, "--head: not with --endpoint"),
    ("--endpoint http://127.0.0.1:1 --device cpu", 2, "--device: not with --endpoint"),
    ("--endpoint 127.0.0.1:1 --engine scaled --max-num-seqs 2 --spec-tokens 1", 2, "must be a URL"),
    (
        "--endpoint http://127.0.0.1:1 --engine scaled --max-num-seqs 2 --spec-tokens 1,3",
        2,
        "one number",
    ),
    ("--endpoint http://127.0.0.1:1 --engine none --max-num-seqs 2 --spec-tokens 1", 2, "none"),
    (
        "--endpoint http://127.0.0.1:1 --engine scaled --max-num-seqs 2 --spec-tokens 1",
        3,
        "refused",
    ),
    ("--endpoint http://user:pw@127.0.0.1:1 --engine scaled", 2, "--max-num-seqs"),
    ("--exact", 2, "--exact: goes with --endpoint"),
    ("--from 'vllm serve m'", 2, "--from: goes with --endpoint"),
]


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_a_bad_line_is_refused(line: str, code: int, words: str) -> None:

    cgbench("audit", *shlex.split(line)).refused(code, words)


def test_a_url_with_a_password_is_not_repeated() -> None:
    done = cgbench(
        *"audit --endpoint http://user:secret@127.0.0.1:1 --engine scaled".split(),
        *"--max-num-seqs 2 --spec-tokens 1".split(),
    )
    done.refused(2, "must hold no user")
    assert "secret" not in done.stderr
