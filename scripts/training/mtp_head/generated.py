"""What the target answers to the prompts, cut where it begins to repeat itself, kept in a file."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from cgbench.engine.acceptance import AcceptanceRule, Greedy, Sampled
from cgbench.engine.acceptance_counts import before_repeat
from cgbench.errors import BadInputError
from cgbench.models.loader import LoadedModel
from mtp_head.decoding import Decoder
from mtp_head.prompts import Prompt, held_out_groups

TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt's tokens and the target's, which end before the first 8-gram seen before."""

    kind: str
    held_out: bool
    prompt_ids: list[int]
    token_ids: list[int]


@dataclass(frozen=True)
class GenerationSettings:
    """``seconds`` bounds the work: no wave of ``batch_size`` prompts begins after it.

    ``sampled_share`` of the prompts, and of the time, are continued at a temperature, the rest
    greedily. Prompts over ``max_prompt_tokens`` are left out.
    """

    batch_size: int
    max_prompt_tokens: int
    max_new_tokens: int
    sampled_share: float
    seconds: float
    seed: int


def generate_samples(
    model: LoadedModel, prompts: Sequence[Prompt], settings: GenerationSettings
) -> list[Sample]:
    """The target's continuations of as many of the prompts, in their order, as the time allows."""
    assert model.tokenizer is not None
    encoded = encode(model.tokenizer, prompts, settings)
    num_sampled = round(settings.sampled_share * len(encoded))
    rules: list[tuple[AcceptanceRule, list[Sample], float]] = [
        (Greedy(), encoded[num_sampled:], 1 - settings.sampled_share),
        (Sampled(TEMPERATURE), encoded[:num_sampled], settings.sampled_share),
    ]
    samples: list[Sample] = []
    for rule, part, share in rules:
        if part:
            samples += _generate_part(model, rule, part, settings, share * settings.seconds)
    return samples


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> list[Sample]:
    """Prompts as token ids, nothing generated yet; without the empty and the too long."""
    held_out = held_out_groups(prompts, settings.seed)
    rows = tokenizer([prompt.text for prompt in prompts])["input_ids"] if prompts else []
    samples = [
        Sample(prompt.kind, prompt.group in held_out, ids, [])
        for prompt, ids in zip(prompts, rows, strict=True)
    ]
    return [s for s in samples if 0 < len(s.prompt_ids) <= settings.max_prompt_tokens]


def _generate_part(
    model: LoadedModel,
    rule: AcceptanceRule,
    part: list[Sample],
    settings: GenerationSettings,
    seconds: float,
) -> list[Sample]:
    decoder = Decoder(
        model,
        spec_tokens=0,
        batch_size=settings.batch_size,
        room=max(len(sample.prompt_ids) for sample in part) + settings.max_new_tokens,
        accept=rule,
    )
    samples: list[Sample] = []
    start, num_tokens = time.monotonic(), 0
    with Progress() as progress:
        task = progress.add_task("", total=seconds)
        for first in range(0, len(part), settings.batch_size):
            elapsed = time.monotonic() - start
            text = f"{rule}: {len(samples)} of {len(part)} prompts, {num_tokens} tokens kept"
            progress.update(task, completed=min(elapsed, seconds), description=text)
            if elapsed >= seconds:
                break
            # Of one length each, so that prefill pads little.
            wave = sorted(part[first : first + settings.batch_size], key=_prompt_length)
            done = _decode_wave(decoder, wave, settings.max_new_tokens, settings.seed + first)
            samples += done
            num_tokens += sum(len(sample.token_ids) for sample in done)
    decoder.release()
    return samples


def _prompt_length(sample: Sample) -> int:
    return len(sample.prompt_ids)


def _decode_wave(
    decoder: Decoder, wave: list[Sample], max_new_tokens: int, seed: int
) -> list[Sample]:
    out = decoder.decode([sample.prompt_ids for sample in wave], max_new_tokens, seed)
    results = zip(wave, out.token_ids, out.accepted, strict=True)
    # The prefill's token comes before the iterations, each of which adds one.
    return [
        replace(sample, token_ids=tokens[: 1 + len(before_repeat(tokens, accepted))])
        for sample, tokens, accepted in results
    ]


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))


def read_samples(path: Path) -> list[Sample]:
    """Raises ``BadInputError`` naming a line that is no sample."""
    samples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise BadInputError(f"--generated {path}: line {number} is no sample") from error
    return samples
