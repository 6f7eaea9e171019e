"""Decode through compiled layers, with nothing really compiled."""

from pathlib import Path

from cgbench.compile.layers import compile_forwards
from cgbench.engine.generation import Generated
from cgbench.engine.iteration import Speculator
from cgbench.engine.runner import EagerRunner
from cgbench.models.loader import LoadedModel
from cgbench.request.choices import QuantMode
from tests.support.tiny import (
    decode_prompts,
    load_tiny,
    make_speculator,
    make_state,
    random_prompts,
)

MAX_NEW_TOKENS = 8
BATCH_SIZES = (5, 1, 3)


class OneBucketRunner(EagerRunner):
    """An eager runner that keeps the rows of requests that have ended, as in a bucket of that size.

    Rows that are left alone would have forms of their own, which are traced where they are asked.
    """

    def num_rows(self, batch_size: int) -> int:
        return max(BATCH_SIZES)


def compiled(
    folder: Path, *, keeps_latents: bool = True, quant: QuantMode = QuantMode.AUTO
) -> tuple[LoadedModel, Speculator]:
    model = load_tiny(folder, keeps_latents=keeps_latents, quant=quant)
    compile_forwards(model.target, model.head)
    return model, make_speculator(model, max_batch_size=max(BATCH_SIZES), room=64)


def decoded(spec: Speculator, spec_tokens: int, batch_size: int) -> list[list[int]]:
    return generated(spec, spec_tokens, batch_size).token_ids


def generated(spec: Speculator, spec_tokens: int, batch_size: int) -> Generated:
    """Tokens and acceptance of the first prompts."""
    state = make_state(spec, spec_tokens, max(BATCH_SIZES))
    prompts = random_prompts(max(BATCH_SIZES))[:batch_size]
    return decode_prompts(spec, OneBucketRunner(spec, state), prompts, MAX_NEW_TOKENS)
