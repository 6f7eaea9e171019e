"""Flags that cannot be used: one line that names the flag, exit code 2, nothing loaded, no file."""

from pathlib import Path
from typing import Any

import pytest

from cgbench.cli.values import parse_scopes
from cgbench.measure import setup
from cgbench.words import Scope
from tests.support.command import FAST, cgbench

DIGITS = "9" * 400
"""A number that no float holds; twenty times as many digits are more than Python reads."""


def bad(arguments: str, *words: str) -> Any:
    return pytest.param(arguments.split(), words, id=arguments[:60])


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets as far as loading ends there, with another exit code."""

    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(setup, "load", load)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        bad("--spec-tokens 17", "--spec-tokens 17", "0 to 16"),
        bad("--spec-tokens -1", "--spec-tokens -1", "0 to 16"),
        bad("--spec-tokens 0,1,17", "--spec-tokens 17", "0 to 16"),
        bad("--spec-tokens x", "--spec-tokens x"),
        bad("--spec-tokens 1.5", "--spec-tokens 1.5"),
        bad("--batch-sizes 0", "--batch-sizes 0"),
        bad("--batch-sizes 4,-2", "--batch-sizes -2"),
        bad("--batch-sizes 1,1000000000", "--batch-sizes 1000000000", "1 to 65536"),
        bad("--batch-sizes a,b", "--batch-sizes a,b"),
        bad("--batch-sizes=", "--batch-sizes"),
        bad("--batch-sizes 8 --max-num-seqs 4", "--batch-sizes 8", "--max-num-seqs 4"),
        bad("--max-num-seqs 1000000000", "--max-num-seqs 1000000000", "1 to 65536"),
        bad("--processes 1000000000", "--processes", "1000"),
        bad("--max-num-seqs -1", "--max-num-seqs -1"),
        bad("--max-num-seqs 0", "--max-num-seqs 0"),
        bad("--max-time -1", "--max-time -1"),
        bad("--max-time inf", "--max-time inf", "604,800 seconds"),
        bad("--max-time nan", "--max-time nan", "604,800 seconds"),
        bad("--max-time 1e300", "--max-time 1e+300", "604,800 seconds"),
        bad("--min-time inf", "--min-time inf", "--max-time"),
        bad("--min-time nan", "--min-time nan", "--max-time"),
        bad(f"--max-new-tokens {DIGITS}", "--max-new-tokens 999", "at most 2,147,483,647"),
        bad(f"--context-len {DIGITS}", "--context-len 999", "must be whole numbers"),
        bad("--context-len 9999999999", "--context-len 9999999999", "at most 2,147,483,647"),
        bad(f"--iterations {DIGITS}", "--iterations 999", "at most 2,147,483,647"),
        bad(f"--max-num-batched-tokens {DIGITS}", "--max-num-batched-tokens 999", "at most"),
        bad(f"--num-prompts {DIGITS}", "--num-prompts 999", "at most 2,147,483,647"),
        bad(f"--max-num-seqs {DIGITS}", "--max-num-seqs 999", "1 to 65536"),
        bad(f"--seed {DIGITS}", "--seed 999", "at most 4,294,967,295"),
        bad("--seed -1", "--seed -1", "at least 0"),
        bad(f"--seed {DIGITS * 20}", "--seed"),
        bad(f"--spec-tokens {DIGITS * 20}", "--spec-tokens 999", "separated by commas"),
        bad(f"--batch-sizes 1,{DIGITS}", "--batch-sizes 1,999", "separated by commas"),
        bad(f"--capture-sizes {DIGITS}", "--capture-sizes 999", "separated by commas"),
        bad("--batch-sizes 1_0", "--batch-sizes 1_0", "separated by commas"),
        bad("--batch-sizes \uff19", "--batch-sizes \uff19", "separated by commas"),
        bad("--precision nan", "--precision nan", "such as 0.5%"),
        bad("--precision 100%", "--precision 100%", "such as 0.5% or 0.005, above 0"),
        bad(f"--precision {DIGITS}", "--precision 999"),
        bad("--min-time 5 --max-time 1", "--min-time 5", "--max-time, 1"),
        bad("--precision 0", "--precision 0", "above 0"),
        bad("--iterations -1", "--iterations -1"),
        bad("--iterations 0", "--iterations 0"),
        bad("--max-new-tokens 0", "--max-new-tokens 0"),
        bad("--context-len 0", "--context-len 0"),
        bad("--max-num-batched-tokens 0", "--max-num-batched-tokens 0"),
        bad("--num-prompts 0", "--num-prompts 0", "at least 1"),
        bad("--draft-vocab 0", "'--draft-vocab'"),
        bad("--draft-vocab x", "'--draft-vocab'"),
        bad("--draft-vocab 8 --spec-tokens 0", "--draft-vocab: --spec-tokens 0 runs no head"),
        bad("--num-prompts -1 --prompts random", "--num-prompts -1", "at least 1"),
        bad("--chat-template on --prompts random", "--chat-template on", "random"),
        bad("--prompts nothing", "--prompts nothing", "mt-bench", "random", "FILE.jsonl"),
        bad("--prompts prompts.json", "--prompts prompts.json", "gsm8k", "FILE.txt"),
        bad("--scopes x", "--scopes x", "eager,phase,iteration"),
        bad("--scopes=", "--scopes"),
        bad("--policy x", "--policy x", "scaled"),
        bad("--policy=", "--policy :", "scaled"),
        bad("--policy explicit", "--policy explicit", "--capture-sizes"),
        bad("--capture-sizes 4 --policy scaled", "--capture-sizes", "--policy scaled"),
        bad("--capture-sizes=", "--capture-sizes"),
        bad("--capture-sizes 0", "--capture-sizes", "at least 1"),
        bad("--capture-sizes x", "--capture-sizes x"),
        bad(
            "--capture-sizes 6 --capture-unit tokens --spec-tokens 3",
            *("--capture-sizes", "--spec-tokens 3", "4 or 8"),
        ),
        bad(
            "--capture-sizes 9 --max-num-seqs 4",
            *("--capture-sizes", "9 requests", "KV room", "--max-num-seqs"),
        ),
        bad(
            "--policy fastdeploy-2.4 --spec-tokens 2 --batch-sizes 1",
            *("fastdeploy-2.4", "--max-num-seqs"),
        ),
        bad("--acceptance x", "--acceptance x", "synthetic"),
        bad("--acceptance=", "--acceptance :", "synthetic"),
        bad("--acceptance synthetic:0.9", "--acceptance", "1 rates for 3 drafts"),
        bad("--acceptance sampled:temperature=0", "--acceptance sampled", "choose greedy"),
        bad("--attention x", "--attention x", "sdpa"),
        bad("--attention triton", "--attention triton", "--device cuda"),
        bad("--attention ../x:y", "--attention ../x:y", "package.module:function"),
        bad("--attention .x:y", "--attention .x:y", "package.module:function"),
        bad("--attention :y", "--attention :y", "package.module:function"),
        bad("--attention json:", "--attention json:", "package.module:function"),
        bad("--attention json:none", "--attention json:none", "no attribute 'none'"),
        bad("--attention json:__name__", "--attention json:__name__", "not a function"),
        bad("--acceptance sampled:temperature=inf", "--acceptance", "finite"),
        bad("--acceptance sampled:temperature=nan", "--acceptance", "finite"),
        bad("--acceptance synthetic:nan", "--acceptance synthetic:nan", "between 0 and 1"),
        bad(f"--acceptance sampled:top-k={DIGITS}", "--acceptance", "1 to 2,147,483,647"),
        bad("--device x", "Invalid value for '--device': 'x' is not one of"),
    ],
)
def test_a_bad_flag_is_named_before_anything_is_loaded(
    tiny: Path, prompts: Path, tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    where = ("--prompts", prompts, "--output", tmp_path / "run")
    done = cgbench("run", tiny, *FAST, *where, *arguments)
    done.refused(2, *words)
    assert done.stderr.splitlines() == [done.error] and len(done.error) < 400
    assert "Value error" not in done.error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_cuda_without_a_device_cannot_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = cgbench("run", "any", "--device", "cuda", "--output", tmp_path / "run")
    done.refused(3, "--device cuda", "--device cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("flag", ["--cold-l2", "--nvtx"])
def test_what_needs_a_gpu_cannot_be_done_on_a_cpu(tiny: Path, tmp_path: Path, flag: str) -> None:
    done = cgbench("run", tiny, *FAST, "--output", tmp_path / "run", flag)
    done.refused(3, flag, "--device")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        bad("--acceptance x", "--acceptance x", "synthetic"),
        bad("--acceptance synthetic:0.9", "--acceptance", "1 rates for 3 drafts"),
        bad("--attention x", "--attention x", "sdpa"),
        bad("--attention triton", "--attention triton", "--device cuda"),
        bad("--kv-dtype int8", "--kv-dtype"),
        bad("--quant w4a16", "--quant"),
        bad("--kv-dtype fp8 --attention json:dumps", "--kv-dtype fp8", "--attention json:dumps"),
        bad("--context-len 600", "--context-len 600", "512 positions", "--spec-tokens"),
        bad("--max-new-tokens 600", "prompt 2 of 14 tokens", "606", "512 positions"),
        bad("--max-num-batched-tokens 13", "--max-num-batched-tokens 13", "prompt 2 of 14 tokens"),
        bad("--chat-template on", "--chat-template on", "no chat template"),
    ],
)
def test_what_only_the_model_can_tell_is_said_before_anything_is_written(
    tiny: Path, prompts: Path, tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    where = ("--prompts", prompts, "--output", tmp_path / "run")
    cgbench("run", tiny, *FAST, *where, *arguments).refused(2, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, [": No such file or directory"]),
        ("", ["holds no prompt"]),
        ("\n  \n", ["holds no prompt"]),
        ('{"prompt": "good"}\n{"prompt"', ["line 2", "not JSON"]),
        ('{"prompt": "good"}\n\n{"text": "a"}\n', ["line 3", '"prompt"']),
        ('{"prompt": ""}\n', ["line 1", '"prompt"']),
        ('["prompt"]\n', ["line 1", '"prompt"']),
        ('{"prompt": 3}\n', ["line 1", '"prompt"']),
        (b'{"prompt": "\xff"}\n', ["utf-8"]),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', ["prompt 1", "no chat template"]),
    ],
    ids="missing empty blank json no-field no-text list number bytes chat".split(),
)
def test_unreadable_prompts_are_named_with_the_line(
    tiny: Path, tmp_path: Path, content: str | bytes | None, words: list[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = cgbench("run", tiny, *FAST, "--prompts", file, "--output", tmp_path / "run")
    done.refused(2, f"--prompts {file}", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_is_loaded")
def test_missing_prompts_cost_no_loading(tiny: Path, tmp_path: Path) -> None:
    done = cgbench("run", tiny, *FAST, "--prompts", tmp_path / "none.jsonl")
    done.refused(2, "--prompts", "none.jsonl")


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("kind", ["a folder with a file", "a file"])
def test_an_output_that_exists_is_left_alone(
    tiny: Path, prompts: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "run"
    mine = out
    if kind == "a folder with a file":
        out.mkdir()
        mine = out / "notes.txt"
    mine.write_text("mine")
    done = cgbench("run", tiny, *FAST, "--prompts", prompts, "--output", out)
    done.refused(2, f"--output {out}", "exists", "--resume")
    assert mine.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == sorted({out, mine})


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_output_that_cannot_be_made_is_named(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    cgbench("run", tiny, *FAST, "--prompts", prompts, "--output", out).refused(2, f"--output {out}")


def test_scopes_may_have_spaces_between_as_other_lists_may() -> None:
    assert parse_scopes("phase, eager") == (Scope.EAGER, Scope.PHASE)


def test_an_own_attention_that_cannot_be_imported_is_told_with_its_error(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_attention.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    done = cgbench("run", tiny, *FAST, "--attention", "failing_attention:decode")
    done.refused(2, "--attention failing_attention:decode: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("arguments", [("--prompts", "caf\udce9.jsonl"), ("caf\udce9",)])
def test_a_name_that_is_not_utf8(arguments: tuple[str, ...]) -> None:
    """Python hands such a byte on as half a surrogate pair, which no library takes."""
    flag = arguments[0] if len(arguments) > 1 else "argument"
    cgbench("run", *arguments).refused(2, f"{flag} caf\\xe9", "is not UTF-8")


@pytest.mark.parametrize("flag", ["--confidence 100%", "--confidence nan"])
def test_a_refused_confidence_suggests_one(flag: str) -> None:
    cgbench("compare", "a", "b", *flag.split()).refused(2, flag, "such as 95% or 0.95")
