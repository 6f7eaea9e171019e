"""The iterations that the quickstart shows token by token are those of the default model."""

import re
from pathlib import Path

from transformers import AutoTokenizer

import cgbench
from cgbench.engine.runner import EagerRunner
from cgbench.kernels.row_updates import NUM_ACCEPTED, NUM_EMITTED, OUT
from tests.support.tiny import decode_prompts, load_tiny, make_speculator, make_state

MODEL = Path(cgbench.__file__).parent / "models" / "default"
PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


def shown() -> tuple[str, list[list[str]]]:
    """The prompt, and the table's rows."""
    section = PAGE.read_text().split("## What one iteration does")[1].split("\n## ")[0]
    prompt = re.search(r"goes on with `([^`]+)`", section)
    assert prompt
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return prompt[1], rows


def tokens(cell: str) -> list[str]:
    return [token.replace("⏎", "\n") for token in re.findall(r"`([^`]+)`", cell)]


class Noting(EagerRunner):
    """Notes each iteration of request 0: the newest token, the drafts, and what came of them."""

    noted: list[tuple[int, list[int], int, list[int]]]

    def step(self, batch_size: int) -> None:
        rows = self.state.full
        before = int(rows.last[0]), rows.drafts[0].tolist()
        super().step(batch_size)
        result = rows.result[0].tolist()
        emitted = result[OUT : OUT + result[NUM_EMITTED]]
        self.noted.append((*before, result[NUM_ACCEPTED], emitted))


def test_the_table_is_what_the_default_model_does() -> None:
    prompt, rows = shown()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    spec = make_speculator(load_tiny(MODEL), max_batch_size=1, room=64)
    runner = Noting(spec, make_state(spec, 3, 1))
    runner.noted = []
    decode_prompts(spec, runner, [tokenizer(prompt).input_ids], 16)
    assert len(rows) == 3
    for row, (last, drafts, kept, emitted) in zip(rows, runner.noted, strict=False):
        newest, drafted, count, out = row
        assert tokens(newest) == [tokenizer.decode([last])]
        assert tokens(drafted) == [tokenizer.decode([token]) for token in drafts]
        assert int(count) == kept
        assert tokens(out) == [tokenizer.decode([token]) for token in emitted]
