"""W8A8: the tokens of each public layout are those of transformers on the dequantised weights, with
every layer's input rounded to FP8 by code of the tests' own."""

from pathlib import Path

import pytest

from cgbench.request.choices import QuantMode
from tests.models.quantised.test_tokens import LAYOUTS, tokens_of
from tests.support.fp8 import BLOCK, make_fp8_checkpoint
from tests.support.quantised_forward import greedy, quantising_model
from tests.support.tiny import load_tiny, random_prompts

COUNT = 12


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_equal_those_of_rounded_inputs(layout: str, tmp_path: Path) -> None:
    kind, family, keywords = LAYOUTS[layout]
    folder, plain = make_fp8_checkpoint(tmp_path, kind, family, **keywords)
    model = load_tiny(folder, quant=QuantMode.W8A8)
    assert model.quant == "w8a8"
    columns = None if layout.endswith(("channels", "tensors")) else BLOCK
    theirs = quantising_model(plain, model.skeleton.scaled, columns)
    expected = [greedy(theirs, prompt, COUNT) for prompt in random_prompts(5)]
    for spec_tokens in (1, 3):
        assert tokens_of(model, spec_tokens) == expected
