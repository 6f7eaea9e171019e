"""Let a head draft from fixed places of the target's own text.

The target runs once. It writes the texts greedily, and its hidden states are kept before and after
its norm. A head is then run over the same states under each wiring, by the engine's own code. A
lossless text depends on no head, so it is right for every wiring.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cgbench.engine.acceptance import Greedy
from cgbench.engine.acceptance_counts import before_repeat
from cgbench.engine.backends import NamedBackend
from cgbench.engine.calls import Prefill, Rows
from cgbench.engine.deployment import make_state
from cgbench.engine.generation import generate
from cgbench.engine.iteration import Speculator
from cgbench.engine.kv import KvCache
from cgbench.engine.prefill import HeadRows, begin_decoding, head_rows, prefill
from cgbench.engine.runner import EagerRunner
from cgbench.models.loader import LoadedModel
from cgbench.models.target import HiddenStates

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Text:
    """A text is a prompt and the tokens that the target wrote after it.

    ``hidden`` are the target's states of the prompt and of all tokens but the last, ``[1, n, H]``.
    """

    prompt: list[int]
    token_ids: list[int]
    hidden: HiddenStates

    @property
    def tokens(self) -> list[int]:
        """Return all tokens."""
        return self.prompt + self.token_ids


@dataclass(frozen=True, slots=True)
class Start:
    """A start is a place in a text from which k drafts are made.

    ``length`` is that of the text before it. The token there is the newest that the head is given,
    and the k tokens after it are the right drafts.
    """

    text: int
    length: int


@dataclass(frozen=True, slots=True)
class Starts:
    """These are the texts, and the starts in them, k + 1 tokens apart.

    So no token is drafted twice. As in ``cgbench run``, they end where a text repeats itself.
    """

    texts: tuple[Text, ...]
    starts: tuple[Start, ...]
    spec_tokens: int

    @property
    def prompt_of(self) -> Counts:
        """Return the prompt of each start, by its place."""
        return np.array([start.text for start in self.starts], dtype=np.int64)


@torch.inference_mode()
def write_texts(
    model: LoadedModel,
    attention: NamedBackend,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    max_num_tokens: int,
) -> tuple[Text, ...]:
    """Let the target write at most ``max_new_tokens`` after each prompt, without a head."""
    longest = max(map(len, prompts))
    cache = _cache(model, batch_size, longest + max_new_tokens + 1, with_target=True)
    spec = Speculator(model.target, None, cache, attention.decode, Greedy())
    state = make_state(spec, 0, batch_size, model.eos_token_ids)
    texts: list[Text] = []
    for first in range(0, len(prompts), batch_size):
        wave = [list(prompt) for prompt in prompts[first : first + batch_size]]
        prefilled = prefill(spec, wave, max_num_tokens)
        begin_decoding(spec, state, prefilled, tokens_left=max_new_tokens - 1)
        written = generate(EagerRunner(spec, state), prefilled.last.tolist()).token_ids
        texts += [
            Text(prompt, token_ids, _states(spec, (prompt + token_ids)[:-1]))
            for prompt, token_ids in zip(wave, written, strict=True)
        ]
    return tuple(texts)


def _states(spec: Speculator, tokens: list[int]) -> HiddenStates:
    rows = torch.tensor([tokens], device=spec.target.device)
    positions = torch.arange(len(tokens), device=rows.device)[None]
    slots = torch.zeros(1, dtype=torch.long, device=rows.device)
    call = Prefill(Rows(spec.cache, slots, positions), slots + len(tokens))
    return spec.target.forward(rows, positions, call)


def find_starts(texts: tuple[Text, ...], spec_tokens: int) -> Starts:
    """Return the starts of ``texts`` for k = ``spec_tokens``."""
    found: list[Start] = []
    for number, text in enumerate(texts):
        # As of iterations that keep all k drafts. The prefill emits the first token.
        count = len(text.token_ids) // (spec_tokens + 1)
        kept = before_repeat(text.token_ids, [spec_tokens] * count)
        prompt_len = len(text.prompt)
        found += [Start(number, prompt_len + i * (spec_tokens + 1)) for i in range(len(kept))]
    return Starts(texts, tuple(found), spec_tokens)


class Drafter:
    """A drafter makes drafts from every start, by the head as it is wired when it is called.

    The head runs once over each text. Drafts are then made from the text's starts, the last one
    first. They overwrite only rows that no earlier start reads.
    """

    def __init__(
        self, model: LoadedModel, attention: NamedBackend, starts: Starts, max_num_tokens: int
    ) -> None:
        """Allocate the head's own KV, in waves of at most ``max_num_tokens`` tokens."""
        self.starts = starts
        used = sorted({start.text for start in starts.starts})
        longest = max(len(starts.texts[number].tokens) for number in used)
        size = min(len(used), max(1, max_num_tokens // longest))
        self.waves = [used[first : first + size] for first in range(0, len(used), size)]
        cache = _cache(model, size, longest + 2 * starts.spec_tokens, with_target=False)
        self.spec = Speculator(model.target, model.head, cache, attention.decode, Greedy())
        self.state = make_state(self.spec, starts.spec_tokens, size)

    @torch.inference_mode()
    def accepted(self) -> Counts:
        """Return how many leading drafts are right at each start, ``[starts]`` of 0..k."""
        counts: dict[Start, int] = {}
        for wave in self.waves:
            rows = self._run_over(wave)
            of_text = [[s for s in self.starts.starts if s.text == number] for number in wave]
            for back in range(1, max(map(len, of_text)) + 1):
                # A text with fewer starts repeats its first one.
                chosen = [each[max(len(each) - back, 0)] for each in of_text]
                counts |= zip(chosen, self._drafts_right(rows, chosen), strict=True)
        return np.array([counts[start] for start in self.starts.starts], dtype=np.int64)

    def _run_over(self, wave: list[int]) -> HeadRows:
        """Run the head over the texts of ``wave``, each in its own slot."""
        texts = [self.starts.texts[number] for number in wave]
        longest, device = max(len(text.tokens) - 1 for text in texts), self.spec.target.device
        following = [text.tokens[1:] for text in texts]
        padded = [each + [0] * (longest - len(each)) for each in following]
        hidden = _together([text.hidden for text in texts], longest)
        slots = torch.arange(len(wave), device=device)
        positions = torch.arange(longest, device=device).expand(len(wave), -1)
        lengths = torch.tensor([len(each) for each in following], device=device)
        call = Prefill(Rows(self.spec.cache, slots, positions), lengths)
        return head_rows(self.spec, torch.tensor(padded, device=device), hidden, call)

    def _drafts_right(self, rows: HeadRows, chosen: list[Start]) -> list[int]:
        """Return how many leading drafts are right at one start of each text of a wave."""
        k, device = self.starts.spec_tokens, self.spec.target.device
        given = torch.tensor([self._given(start) for start in chosen])
        lengths = torch.tensor([start.length for start in chosen], device=device)
        prefilled = rows.prefilled(given[:, 0].to(device), lengths)
        begin_decoding(self.spec, self.state, prefilled, tokens_left=k + 1, ignore_eos=True)
        drafts = self.state.full.drafts[: len(chosen)].cpu()
        return (drafts == given[:, 1:]).long().cumprod(1).sum(1).tolist()

    def _given(self, start: Start) -> list[int]:
        """Return the token at a start and the k right drafts after it."""
        tokens = self.starts.texts[start.text].tokens
        return tokens[start.length : start.length + self.starts.spec_tokens + 1]


def _together(states: list[HiddenStates], longest: int) -> HiddenStates:
    """Return the states of several texts as one batch of ``longest`` rows each."""
    pre_norm = torch.cat([_padded(each.pre_norm, longest) for each in states])
    post_norm = torch.cat([_padded(each.post_norm, longest) for each in states])
    by_layer = zip(*(each.aux for each in states), strict=True)
    aux = (torch.cat([_padded(each, longest) for each in layer]) for layer in by_layer)
    return HiddenStates(pre_norm, post_norm, tuple(aux))


def _padded(states: torch.Tensor, longest: int) -> torch.Tensor:
    """Return ``states [1, n, H]`` with zeros up to ``longest`` rows."""
    return torch.nn.functional.pad(states, (0, 0, 0, longest - states.shape[1]))


def _cache(model: LoadedModel, num_slots: int, room: int, *, with_target: bool) -> KvCache:
    """Return KV for the target alone, or for the head alone."""
    num_layers = model.target.num_layers
    shapes = {i: s for i, s in model.kv_shapes.items() if (i < num_layers) == with_target}
    return KvCache(
        shapes,
        max_batch_size=num_slots,
        room=room,
        dtype=model.target.dtype,
        device=model.target.device,
        state_shapes=model.state_shapes if with_target else None,
        kv_format=model.kv_format,
    )
