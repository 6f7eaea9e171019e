"""Any value in any field of any file of a checkpoint, and any line of prompts: good, or exit code 2
with the file in the one line."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cgbench.errors import CannotError
from cgbench.measure import setup
from cgbench.models.config_fields import MAX_EXPERTS, MAX_LAYERS
from cgbench.models.heads.families import DEEPSEEK, QWEN
from cgbench.workload import prompt_files
from tests.support.command import FAST, Done, cgbench
from tests.support.tiny import MIMO, add_tokenizer, edit_config, make_checkpoint

KINDS = {"mimo": MIMO, "glm4_moe": DEEPSEEK, "qwen3_5_moe": QWEN}
"""Dense; routed experts in groups; fields within ``text_config``, beside a tower's."""

NO_RESET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

WHOLE = st.one_of(
    st.integers(-3, 70), st.sampled_from([2**31, 10**9, 10**18, 10**400, -(10**9), -(2**63)])
)
TEXT = st.one_of(st.text(max_size=8), st.sampled_from(["\ud800", "x" * 5000, "../x", "\x00"]))
PLAIN = st.one_of(st.none(), st.booleans(), WHOLE, st.floats(), TEXT)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)

EXCEPTION = re.compile(r"\b[A-Z][A-Za-z]*(Error|Exception)\b")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder a kind, which the tests below write in; the good content is beside it."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        kind: make_checkpoint(root / kind, kind, family=family) for kind, family in KINDS.items()
    }
    for folder in made.values():
        shutil.copy(folder / "config.json", root / f"{folder.name}.json")
    return made


def good_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(folder.with_suffix(".json").read_text())
    return content


def paths(value: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of an object, and of the objects in it."""
    for name, entry in value.items():
        yield (*above, name)
        if isinstance(entry, dict):
            yield from paths(entry, (*above, name))


def with_value(config: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    first, *rest = path
    return {**config, first: with_value(config[first], tuple(rest), value) if rest else value}


def inspect(folder: Path) -> Done:
    return cgbench("inspect", folder, "--device", "cpu")


def good_or_named(done: Done, file: Path) -> None:
    """Answered, or refused in one line with the file, in words that are no exception's."""
    if done.code not in (0, 1):
        done.refused(2, str(file))
        assert not EXCEPTION.search(done.error.replace(str(file), ""))


@pytest.mark.parametrize("kind", KINDS)
@settings(NO_RESET, max_examples=12)
@given(data=st.data())
def test_any_value_of_any_field_of_a_config(
    checkpoints: dict[str, Path], kind: str, data: st.DataObject
) -> None:
    folder = checkpoints[kind]
    config = good_config(folder)
    path = data.draw(st.sampled_from([*paths(config)]))
    changed = with_value(config, path, data.draw(VALUES))
    try:
        (folder / "config.json").write_text(json.dumps(changed))
        good_or_named(inspect(folder), folder / "config.json")
    finally:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\x1b[31m"])
def test_a_name_that_ends_a_line_stays_in_the_one_line(tmp_path: Path, end: str) -> None:
    folder = make_checkpoint(tmp_path, "mimo")
    edit_config(folder, rope_parameters={f"a{end}b": 10**18})
    done = inspect(folder)
    done.refused(2, str(folder / "config.json"), f"a{repr(end)[1:-1]}b")


@settings(NO_RESET, max_examples=10)
@given(
    name=st.sampled_from(["eos_token_id", "temperature", "top_k", "max_length", "do_sample"]),
    value=VALUES,
)
def test_any_value_of_a_generation_config(
    checkpoints: dict[str, Path], name: str, value: object
) -> None:
    file = checkpoints["mimo"] / "generation_config.json"
    content = file.read_text()
    file.write_text(json.dumps({name: value}))
    good_or_named(inspect(checkpoints["mimo"]), file)
    file.write_text(content)


DEEP = "[" * 100_000
NO_OBJECTS = {
    "list": "[]",
    "null": "null",
    "text": '"x"',
    "deep": DEEP,
    "deep in a field": f'{{"model_type": {DEEP}',
    "fairly deep": f'{{"model_type": "llama", "a": {"[" * 90}{"]" * 90}}}',
    "long number": f'{{"model_type": {"9" * 5000}}}',
    "cut": "{",
    "empty": "",
    "no UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("content", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_a_file_that_holds_no_object(
    tiny: Path, tmp_path: Path, file: str, content: str | bytes
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    done = inspect(folder)
    done.refused(2, str(folder / file))
    assert not EXCEPTION.search(done.error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, ["num_hidden_layers 1000000000", f"1 to {MAX_LAYERS:,}"]),
        ({"num_experts": 10**9}, ["num_experts 1000000000", f"0 to {MAX_EXPERTS:,}"]),
        ({"num_labels": 10**9}, ["num_labels 1000000000", "at most 65,536"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings 0", "from 1 to"]),
        ({"num_nextn_predict_layers": -1}, ["num_nextn_predict_layers -1", "from 0 to"]),
        ({"num_nextn_predict_layers": "one"}, ["num_nextn_predict_layers one", "whole number"]),
        ({"mtp_num_hidden_layers": 1.5}, ["mtp_num_hidden_layers 1.5", "whole number"]),
        ({"hidden_size": "32"}, ["hidden_size 32", "whole number from 1"]),
        ({"hidden_size": True}, ["hidden_size true", "whole number from 1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads 0", "from 1 to"]),
        ({"num_attention_heads": 5}, ["num_key_value_heads 2", "divide num_attention_heads, 5"]),
        ({"hidden_size": 34}, ["num_attention_heads 4", "divide hidden_size, 34"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps NaN", "above 0"]),
        ({"attention_scale": float("inf")}, ["attention_scale Infinity", "finite"]),
        ({"rope_parameters": {"rope_type": "x", "rope_theta": 1e4}}, ["rope_type", "x"]),
        ({"hidden_act": "x"}, ["hidden_act: x is unknown"]),
        ({"dtype": "x"}, ["dtype x", "such as bfloat16"]),
        ({"attention_dropout": None}, ["attention_dropout", "float"]),
        ({"layer_types": ["x", "y"]}, ["layer_types"]),
        ({"eos_token_id": 256}, ["eos_token_id 256", "0 to 255"]),
        ({"model_type": "nobodys", "auto_map": {"AutoConfig": "a.B"}}, ["nobodys", "never run"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_is_refused_by_field_and_what_it_must_be(
    tiny: Path, tmp_path: Path, changes: dict[str, object], words: list[str]
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    edit_config(folder, **changes)
    done = inspect(folder)
    done.refused(2, f"MODEL {folder}/config.json: ", *words)
    good_or_named(done, folder / "config.json")


def test_end_tokens_of_a_generation_config_are_the_vocabularys(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    file = folder / "generation_config.json"
    file.write_text('{"eos_token_id": [3, 256]}')
    inspect(folder).refused(2, f"{file}: eos_token_id 256", "0 to 255")


def make_pipe(file: Path) -> None:
    os.mkfifo(file)


@pytest.mark.parametrize("make", [make_pipe, Path.mkdir])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_or_a_folder_in_a_files_place(
    tiny: Path, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / name).unlink()
    make(folder / name)
    inspect(folder).refused(2, str(folder / name), "must be a file")


@pytest.mark.parametrize(
    "weight_map",
    [
        *(None, [], {}, {"a": 3}, {"a": "../model.safetensors"}, {"a": "/etc/x.safetensors"}),
        *({"a": "model.bin"}, {"a": "\ud800.safetensors"}),
    ],
)
def test_an_index_names_files_beside_it(tiny: Path, tmp_path: Path, weight_map: object) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": weight_map}))
    inspect(folder).refused(2, str(file), "weight_map")


def stored_as(folder: Path, name: str, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].to(dtype)}, file, metadata={"format": "pt"})


@pytest.fixture
def run(tmp_path: Path, prompts: Path) -> Callable[..., Done]:
    """A run that is refused before its folder is made."""
    return lambda model, *args: cgbench(
        "run", model, *FAST, "--prompts", prompts, "--output", tmp_path / "run", *args
    )


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I")],
)
@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_without_a_scale_are_refused_by_tensor_file_and_type(
    run: Callable[..., Done], tiny: Path, tmp_path: Path, name: str, dtype: torch.dtype, word: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    stored_as(folder, name, dtype)
    run(folder).refused(2, str(folder / "model.safetensors"), name, word, "BF16")
    done = inspect(folder)
    assert done.code == 1 and f"{name} is stored as {word}" in done.stdout


def test_experts_without_a_scale_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", "glm4_moe", family=DEEPSEEK)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    stored_as(folder, name, torch.int8)
    done = inspect(folder)
    assert done.code == 1 and f"{name} is stored as I8" in done.stdout


def test_integers_that_no_weight_of_the_target_is_made_of_are_left_alone(
    run: Callable[..., Done], tiny: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    file = folder / "model.safetensors"
    extra = {"vision.proj.weight": torch.ones(3, dtype=torch.int8)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    assert inspect(folder).code == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("tokenizer.json", content) for content in ("{", "[]", "{}", DEEP, '{"model": 3}')),
        *(("tokenizer_config.json", content) for content in ("{", "[]", DEEP)),
    ],
    ids=lambda text: text[:12],
)
def test_a_damaged_tokenizer_is_named(
    run: Callable[..., Done], tiny: Path, tmp_path: Path, file: str, content: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (folder / file).write_text(content)
    done = run(folder)
    done.refused(2, str(folder), file)
    assert not EXCEPTION.search(done.error)


def test_tokens_past_the_embedding_are_refused(run: Callable[..., Done], tmp_path: Path) -> None:
    """On a GPU such a token ends the process in the middle of a kernel."""
    folder = make_checkpoint(tmp_path / "tiny", "mimo", vocab_size=64)
    add_tokenizer(folder)
    run(folder).refused(2, "prompt 1 is token", "63 is the last")


@pytest.fixture(scope="module")
def prepared(tiny: Path) -> Iterator[None]:
    """A run's preparation alone: the model is loaded once, and it ends where buffers are made."""
    loaded: list[Any] = []
    load = setup.load

    def load_once(*args: Any) -> Any:
        loaded.extend([] if loaded else [load(*args)])
        return loaded[0]

    def end(*_: object) -> None:
        raise CannotError("prepared")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "load", load_once)
        patch.setattr(setup, "make_deployment", end)
        yield


def decode(model: Path, file: Path) -> None:
    done = cgbench("run", model, *FAST, "--prompts", file, "--output", file.parent / "run")
    if done.code != 3 or not done.error.endswith("prepared"):
        done.refused(2, f"--prompts {file}")
        assert not EXCEPTION.search(done.error)


MESSAGE = st.fixed_dictionaries({"role": TEXT | VALUES, "content": TEXT | VALUES})
ENTRY = st.one_of(
    VALUES,
    st.fixed_dictionaries({"prompt": TEXT | VALUES}),
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=2) | VALUES}),
    st.fixed_dictionaries({"prompt": TEXT, "id": VALUES}),
)


@pytest.mark.usefixtures("prepared")
@settings(NO_RESET, max_examples=20)
@given(entry=ENTRY)
def test_any_value_of_a_line_of_prompts(tiny: Path, tmp_path: Path, entry: object) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(entry) + "\n")
    decode(tiny, file)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
@settings(NO_RESET, max_examples=20)
@given(content=st.binary(max_size=30))
def test_any_bytes_as_prompts(tiny: Path, tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"mine.{suffix}"
    file.write_bytes(content)
    decode(tiny, file)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "\\ud800"}', ["line 2", "\\ud800", "must be text"]),
        ('{"messages": [{"role": "user", "content": "\\udfff"}]}', ["line 2", "\\udfff"]),
        (DEEP, ["line 2", "nested too deep"]),
        (f'{{"prompt": "a", "id": {DEEP}', ["line 2", "nested too deep"]),
        (f'{{"prompt": "a", "id": {"9" * 5000}}}', ["line 2", "digits"]),
    ],
    ids=["surrogate", "surrogate in a chat", "deep", "deep field", "long number"],
)
def test_a_line_that_python_reads_and_nothing_can_use(
    tiny: Path, tmp_path: Path, line: str, words: list[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a"}\n' + line)
    done = cgbench("run", tiny, *FAST, "--prompts", file)
    done.refused(2, f"--prompts {file}", *words)


def test_a_file_of_prompts_is_not_read_past_its_limit(tiny: Path, tmp_path: Path) -> None:
    """The file is sparse: it takes no disk, and reading it would take minutes."""
    file = tmp_path / "mine.jsonl"
    with file.open("wb") as sparse:
        sparse.truncate(prompt_files.MAX_FILE_BYTES + 1)
    done = cgbench("run", tiny, *FAST, "--prompts", file)
    done.refused(2, f"--prompts {file}: 67,108,865 bytes", "at most 67,108,864")


@pytest.mark.parametrize("letter", ["a", "é"])
def test_a_long_line_of_prompts_is_refused_before_it_is_parsed(
    tiny: Path, tmp_path: Path, letter: str
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("short\n" + letter * (prompt_files.MAX_PROMPT_BYTES + 1))
    done = cgbench("run", tiny, *FAST, "--prompts", file)
    done.refused(2, f"--prompts {file}: line 2: ", "at most 4,194,304")


@pytest.mark.parametrize("make", [make_pipe, Path.mkdir])
def test_prompts_that_are_a_pipe_or_a_folder(
    tiny: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "mine.jsonl"
    make(file)
    cgbench("run", tiny, *FAST, "--prompts", file).refused(2, f"--prompts {file}", "must be a file")
