"""Decode through compiled layers, with nothing really compiled."""

from pathlib import Path

from cgbench.compile.layers import compile_forwards
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

MAX_NEW_TOKENS = 12
BATCH_SIZES = (5, 1, 3)


def compiled(
    folder: Path, *, keeps_latents: bool = True, quant: QuantMode = QuantMode.AUTO
) -> tuple[LoadedModel, Speculator]:
    model = load_tiny(folder, keeps_latents=keeps_latents, quant=quant)
    compile_forwards(model.target, model.head)
    return model, make_speculator(model, max_batch_size=max(BATCH_SIZES), room=64)


def decoded(spec: Speculator, spec_tokens: int, batch_size: int) -> list[list[int]]:
    state = make_state(spec, spec_tokens, max(BATCH_SIZES))
    prompts = random_prompts(max(BATCH_SIZES))[:batch_size]
    return decode_prompts(spec, EagerRunner(spec, state), prompts, MAX_NEW_TOKENS).token_ids
