"""Check that verify's hidden states and logits are those of a forward without cache, slots or
batch.

An attention may be a little wrong: a mask one column too wide, or a position off by one. It can
give the same argmax for a long time, but its hidden states differ at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from cgbench.checks.findings import Difference, Finding
from cgbench.checks.noise import NOISE_TRIES, moved_embeddings
from cgbench.checks.reference import (
    head_form,
    reference_states,
    relative_error,
)
from cgbench.checks.steps import (
    STEPS,
    BucketRunner,
    Trajectory,
    conclude,
    snapshot,
    start,
    tile,
    where_of,
)
from cgbench.checks.subject import Subject
from cgbench.engine import iteration as stages
from cgbench.kernels.fp8.definition import by_definition
from cgbench.models.target import HiddenStates

NAME = "hidden"
TITLE = "verify's hidden states and logits are the reference attention's"

EXACT_ERROR = 1e-4
# The allowed error is this many times that of transformers' own two attentions against each other.
# The engine's rounding adds to theirs.
MAX_NOISES = 4
LEAST_ERROR = 1e-3
# By so much e4m3 rounds a number at most. Below float32 the engine's rounding and the reference's
# may send a key, a value or an activation to different neighbours.
LEAST_FP8_ERROR = 2.0**-4

SAMPLED_ROWS = 4


def run(subject: Subject) -> Finding:
    """Compare hidden states and logits of a few rows at every step, and return the finding."""
    figures: dict[str, float] = {
        "largest_relative_error": 0.0,
        "allowed_relative_error": allowed_error(subject),
        "relative_noise": subject.plain.relative_noise,
    }
    return conclude(subject, NAME, _differences(subject, figures), figures)


def allowed_error(subject: Subject) -> float:
    """Return the largest relative error that rounding explains in this dtype."""
    if subject.is_exact:
        return EXACT_ERROR
    spec = subject.spec
    is_fp8 = spec.cache.kv_format.is_fp8 or subject.is_w8a8
    is_rounded = is_fp8 and spec.target.dtype != torch.float32
    least = LEAST_FP8_ERROR if is_rounded else LEAST_ERROR
    return MAX_NOISES * subject.plain.relative_noise + least


def _differences(subject: Subject, figures: dict[str, float]) -> Iterator[Difference]:
    for k in subject.states:
        runner = BucketRunner(subject, k)
        prompts = tile(subject.prompts, max(1, subject.largest(k) - 1))
        requests = start(subject, runner, prompts)
        for _ in range(STEPS):
            yield from _compare(subject, requests, figures)
            requests.step()


def _compare(
    subject: Subject, requests: Trajectory, figures: dict[str, float]
) -> Iterator[Difference]:
    before = snapshot(requests.runner.state)
    tokens = [
        [*sequence, *drafts]
        for sequence, drafts in zip(requests.sequences, requests.rows.drafts.tolist(), strict=True)
    ]
    bucket = requests.runner.num_rows(requests.batch_size)
    verified = stages.verify(subject.spec, requests.runner.state.rows(bucket))
    logits = subject.spec.target.whole_logits(verified)
    for row in sample(requests.batch_size):
        expected = _reference(subject, tokens[row], logits.shape[1])
        got = {"logits": logits[row], "hidden": requests.rows.hidden[row]}
        for what, reference in expected.items():
            error = relative_error(got[what], reference)
            figures["largest_relative_error"] = max(figures["largest_relative_error"], error)
            # Not "error >": a NaN is wrong too.
            if not error <= figures["allowed_relative_error"] and not _moves_as_far(
                subject, tokens[row], what, reference, error - figures["allowed_relative_error"]
            ):
                text = f"verify's {what}: relative error {error:.2g}"
                yield Difference(text, where_of(requests.runner, len(tokens), row), inputs=before)


def _moves_as_far(
    subject: Subject, tokens: list[int], what: str, reference: Tensor, error: float
) -> bool:
    """Return whether the reference moves by ``error`` itself when its embeddings are rounded
    otherwise.

    A mixture may choose another expert then, and a cache of FP8 another neighbour. Few prompts do
    not show how far that goes, so it is asked where a row is off.
    """
    if subject.is_exact:
        return False
    for seed in range(NOISE_TRIES):
        with moved_embeddings(subject.spec.target, seed):
            moved = _reference(subject, tokens, len(reference))[what]
        if relative_error(moved, reference) >= error:
            return True
    return False


def _reference(subject: Subject, tokens: list[int], query_len: int) -> dict[str, Tensor]:
    """Return the logits of the last ``query_len`` rows, and their hidden states in the form the
    head is fed.
    """
    spec = subject.spec
    states = reference_states(spec.target, tokens, rounding=subject.rounding)
    with by_definition():
        return _expected(subject, states, query_len)


def _expected(subject: Subject, states: HiddenStates, query_len: int) -> dict[str, Tensor]:
    spec = subject.spec
    expected = {"logits": spec.target.logits(states.post_norm[0, -query_len:])}
    if spec.head is not None and query_len > 1:
        expected["hidden"] = head_form(spec.head, states)[0, -query_len:]
    return expected


def sample(batch_size: int) -> list[int]:
    """Return a few rows, the first and the last among them."""
    last = batch_size - 1
    return sorted({round(i * last / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)})
