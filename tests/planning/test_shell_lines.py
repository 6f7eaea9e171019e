"""How a launch line stands in a shell, a script or a file, and what is refused there."""

import json
from pathlib import Path

import pytest

from cgbench.errors import BadInputError
from cgbench.planning.launch_lines import read_launch
from cgbench.planning.launch_lines.shell_line import assignments, commands

SERVE = "vllm serve M --max-num-seqs 8"

AROUND = [
    f"cd /models && CUDA_VISIBLE_DEVICES=0 {SERVE}",
    f"export HF_HOME=/x; {SERVE} &",
    f"nohup {SERVE} > serve.log 2>&1 &",
    f"{SERVE} &> serve.log",
    "vllm serve M > serve.log --max-num-seqs 8 2>>errors",
    f"{SERVE} | tee serve.log",
    f"bash -lc '{SERVE}'",
    f'docker run image sh -c "sleep 1; {SERVE}"',
    f"sudo -E uv run {SERVE}",
    f"docker run --gpus all vllm/vllm-openai:v0.33.0 {SERVE}",
    "docker run --gpus all vllm/vllm-openai:v0.33.0 M --max-num-seqs 8",
    f"source env.sh\n{SERVE}  # the server\n",
    "vllm serve M \\\r\n  --max-num-seqs 8\r\n",
    "/opt/venv/bin/vllm serve <M> --max-num-seqs=8",
    f"ssh -p 22 user@host '{SERVE}'",
    f"ssh -o 'StrictHostKeyChecking no' host 'cd /x && nohup {SERVE} > log 2>&1 &'",
    f"ssh host \"bash -lc '{SERVE}'\"",
    f"tmux new -d -s serve '{SERVE}'",
    '["vllm", "serve", "M", "--max-num-seqs", "8"]',
    '[\n  "vllm", "serve", "M",\n  "--max-num-seqs", 8\n]\n',
    "['vllm', 'serve', 'M', '--max-num-seqs=8']",
    "[vllm, serve, M, --max-num-seqs, 8]",
    "- vllm\n- serve\n- M\n- --max-num-seqs\n- '8'\n",
    f'["bash", "-c", "{SERVE}"]',
    f'["/bin/sh", "-c", "exec {SERVE} > log"]',
]


@pytest.mark.parametrize("line", AROUND)
def test_what_stands_around_the_engines_words_is_left_out(line: str) -> None:
    found = read_launch(line, None, None)
    assert (found.request.max_batch_size, found.warnings) == (8, ())


def test_each_command_has_its_words() -> None:
    assert commands("x", "a 'b; c' && d | e >f 2> g h;i") == [
        ["a", "b; c"],
        ["d"],
        ["e", "h"],
        ["i"],
    ]


def test_a_shell_within_a_shell_ends() -> None:
    line = "a"
    for _ in range(9):
        line = f"bash -c {line!r}" if "'" not in line else f'bash -c "{line}"'
    assert commands("x", line)


def test_variables_are_those_of_a_command_and_of_export() -> None:
    found = assignments(commands("x", "A=1 b; export C=2 && d --e=3"))
    assert found == {"A": "1", "C": "2"}


@pytest.mark.parametrize("dash", ["\u2013", "\u2014", "\u2212", "\u2011"])
@pytest.mark.parametrize("line", ["vllm serve M {}max-num-seqs 8", "vllm serve M --port 1 {}tp 2"])
def test_a_dash_of_a_word_processor_is_refused(dash: str, line: str) -> None:
    with pytest.raises(BadInputError, match=r"begins with .. Type a plain - there"):
        read_launch(line.format(dash), None, None)


def test_a_word_too_many_is_listed() -> None:
    found = read_launch("vllm serve M max-num-seqs 8 --port 8000 tp 2", None, None)
    assert found.warnings == tuple(
        f"{word}: not understood" for word in ("max-num-seqs", "8", "tp", "2")
    )
    assert read_launch("trtllm-serve --tp_size 8 M --port 1", None, None).warnings == ()
    names = read_launch(f"{SERVE} --served-model-name a b c", None, None)
    assert names.warnings == ()


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_flag_takes_no_value(value: str) -> None:
    with pytest.raises(BadInputError, match=rf"--enforce-eager={value}: --enforce-eager takes no"):
        read_launch(f"vllm serve M --enforce-eager={value}", None, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--max-num-seqs 1000000000000000000000", "must be at most 2,147,483,647"),
        ("--max-num-seqs 70000", "must be 1 to 65536"),
        ("--max-num-seqs 0", "must be at least 1"),
        ("--max-num-seqs 8.5", "must be a whole number"),
        ("--max-num-batched-tokens 99999999999999999", "must be at most 2,147,483,647"),
        ("--max-num-batched-tokens 1.5K", "must be a whole number"),
        ("--max-num-seqs 3000 --max-num-batched-tokens 2k", "above max_num_batched_tokens 2000"),
    ],
)
def test_a_number_out_of_range(line: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as caught:
        read_launch(f"vllm serve M {line}", None, None)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


BOMB = "".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))

FILES = {
    "list.yaml": "cudagraph-capture-sizes: [1, 2, 4]\nmax-num-seqs: 4\ntrust-remote-code: false\n",
    "ends.yaml": "max-num-seqs: 4\ncudagraph-capture-sizes:\n- 1\n- 2\n- 4\n",
    "sglang.yaml": "max-running-requests: 4\ndisable-cuda-graph-padding: false\n",
    "fastdeploy.yaml": (
        "max_num_seqs: 16\ngraph_optimization_config: {cudagraph_capture_sizes: [1, 16]}\n"
    ),
    "trt.yaml": "max_batch_size: 4\n",
    "bomb.yaml": BOMB,
    "code.yaml": "max-num-seqs: !!python/object/apply:os.system ['true']\n",
    "names.yaml": "- a\n- b\n",
    "serve.json": '{"max-num-seqs": 4}',
    "start me": SERVE,
    "run": SERVE,
    "program": "\0",
}


@pytest.mark.parametrize("file", ["list.yaml", "ends.yaml"])
def test_a_list_that_ends_a_file_does_not_take_the_model(file: str) -> None:
    found = read_launch(f"vllm serve M --config {file} --port 8000", None, None)
    assert found.request.graph_sizes == (1, 2, 4)
    assert (found.request.max_batch_size, found.warnings) == (4, ())


def test_a_false_value_says_nothing_to_sglang() -> None:
    found = read_launch("python -m sglang.launch_server --config sglang.yaml", None, None)
    assert (found.request.pad, found.warnings) == (True, ())


def test_the_line_replaces_what_the_file_says() -> None:
    found = read_launch("vllm serve M --config list.yaml --max-num-seqs 6", None, None)
    assert found.request.max_batch_size == 6


def test_fastdeploy_reads_a_file_too_which_names_it() -> None:
    line = "python -m fastdeploy.entrypoints.openai.api_server --config=fastdeploy.yaml"
    for found in (
        read_launch(line, None, None),
        read_launch(None, Path("fastdeploy.yaml"), None),
    ):
        assert (found.engine, found.request.graph_sizes) == ("FastDeploy", (1, 16))


BROKEN = {
    "vllm serve M --config=list.yaml": "reads no file from it. Write --config FILE",
    "vllm serve M --config list.yaml --config ends.yaml": "--config: is given twice",
    "vllm serve M --config --port 1": "--config: needs a value",
    "vllm serve M --config serve.json": "a file that ends in .yaml or .yml",
    "trtllm-serve M --config bomb.yaml": "its aliases stand for over 100,000 values",
    "trtllm-serve M --config code.yaml": "is not YAML in line 1",
    "trtllm-serve M --config names.yaml": "must hold names and values",
    "trtllm-serve M --config trt.yaml --extra_llm_api_options=trt.yaml": "is given twice",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_file_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_launch(line, None, None)
    assert BROKEN[line] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_named_once() -> None:
    for line in ("vllm serve M --config list.yaml", "trtllm-serve M --config trt.yaml"):
        with pytest.raises(BadInputError, match=r"--from names .* too. Drop one"):
            read_launch(line, Path("list.yaml"), None)


TAKEN = "The shell took its double quotes. Put the line into a file"
QUOTES = {
    "vllm serve M --speculative-config '{method: mtp, num_speculative_tokens: 2}'": TAKEN,
    'vllm serve M -sc "{"method": "mtp", "num_speculative_tokens": 2}"': TAKEN,
    "vllm serve M -cc {cudagraph_mode:NONE}": TAKEN,
    "python -m sglang.launch_server --cuda-graph-config '{decode: {max_bs: 8}}'": TAKEN,
    "vllm serve M -sc '{\u201cmethod\u201d: \u201cmtp\u201d}'": "Its quotes are curly (\u201c)",
    'vllm serve M -sc \u2018{"method": "mtp"}\u2019': "Its quotes are curly (\u2018). Type plain",
    "vllm serve M --max-num-seqs \u201c8\u201d": "Its quotes are curly (\u201c). Type plain ones",
}


@pytest.mark.parametrize("line", QUOTES)
def test_quotes_that_a_shell_or_a_word_processor_took_are_named(line: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_launch(line, None, None)
    assert QUOTES[line] in str(caught.value)


@pytest.mark.parametrize("value", ['{"method": }', "mtp", '{"method": "mtp", }', "{}}"])
def test_json_that_has_its_quotes_is_only_called_broken(value: str) -> None:
    with pytest.raises(BadInputError, match="is not JSON") as caught:
        read_launch(f"vllm serve M -sc '{value}'", None, None)
    assert "quotes. " not in str(caught.value) and "curly" not in str(caught.value)


CAT = "starts no known engine. For the line in a file, give --from "
NO_LINES = {
    "serve.sh": f'{CAT}"$(cat serve.sh)"',
    "./a/serve.txt": f'{CAT}"$(cat ./a/serve.txt)"',
    "run": f'{CAT}"$(cat run)"',
    "start me": f"""{CAT}"$(cat 'start me')\"""",
    "bash serve.sh --port 8": f'{CAT}"$(cat serve.sh)"',
    "list.yaml": "An engine's own configuration goes to cgbench plan --config list.yaml",
    "docker compose -f serve.yml up": "starts no known engine. It must hold vllm serve",
    "program x": "starts no known engine. It must hold vllm serve",
    "nowhere": "starts no known engine. It must hold vllm serve",
}


@pytest.mark.parametrize("line", NO_LINES)
def test_a_files_name_in_place_of_the_line_names_the_cure(line: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_launch(line, None, None)
    assert NO_LINES[line] in str(caught.value)


@pytest.mark.parametrize("blanks", [" ", "  ", "\t", "\u00a0"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_space_behind_a_backslash_is_named_by_its_line(blanks: str, end: str) -> None:
    line = f"vllm serve M \\{end} --port 1 \\{blanks}{end} --max-num-seqs 8 \\{blanks}"
    found = read_launch(line, None, None)
    assert found.request.max_batch_size == 8
    assert found.warnings == tuple(
        f"a space follows \\ at the end of line {n}, where a shell ends the command" for n in (2, 3)
    )


def test_a_backslash_within_a_line_or_escaped_is_none() -> None:
    for line in (f"cd a\\ b && {SERVE}", f"echo \\\\ \n{SERVE}"):
        assert read_launch(line, None, None).warnings == ()


def test_a_list_keeps_the_quotes_of_its_words() -> None:
    words = ["vllm", "serve", "M", "-sc", '{"method": "mtp", "num_speculative_tokens": 2}']
    found = read_launch(json.dumps(words), None, None)
    assert (found.request.spec_tokens, found.warnings) == (2, ())


@pytest.mark.parametrize("line", ["[]", '[["vllm", "serve"]]', "[vllm, {", "- a: b\n- c"])
def test_what_is_no_list_of_words_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(BadInputError, match="starts no known engine") as caught:
        read_launch(line, None, None)
    assert "\n" not in str(caught.value)
