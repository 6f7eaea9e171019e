"""The reference that the engine is compared with is slow, plain, and shares no code with it.

``Plain`` is transformers alone, with its own attention and its own cache. ``GrowingAttention`` and
``reference_draft_logits`` recompute the target and its head from the first token, without cache,
slots or batch. Products of FP8 weights are products of their values, without a kernel. FP8 keys and
values are rounded as they come, and kept as numbers of the model's dtype.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PretrainedConfig, PreTrainedModel

from cgbench.checks.noise import NOISE_TRIES, moved_embeddings
from cgbench.kernels.attention import AttentionInput
from cgbench.kernels.fp8.definition import by_definition
from cgbench.models.heads.dflash_head import DFlashHead
from cgbench.models.heads.head import DraftHead, MtpModule
from cgbench.models.quantised.kv_format import PLAIN, KvFormat
from cgbench.models.support import GENERATE_CACHE
from cgbench.models.target import HiddenStates, Target, request_keys
from cgbench.request.choices import FirstEmbedding, ModuleFeed, NormSide

# The noise is measured on this many positions at a prompt's end. All of them, at a vocabulary of
# 150,000, would take gigabytes.
NOISE_POSITIONS = 32


class Rounding:
    """A ``Rounding`` gives keys and values the values that a cache of ``kv_format`` keeps of them.

    It is written for itself, so that a fault of the cache is no fault of the reference.
    """

    def __init__(self, kv_format: KvFormat = PLAIN) -> None:
        self.kv_format = kv_format

    def __call__(self, layer_idx: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``key`` and ``value``, each ``[B, H, S, D]``, as a layer's cache keeps them."""
        if not self.kv_format.is_fp8:
            return key, value
        of_key, of_value = self.kv_format.stated.get(layer_idx, (None, None))
        return _rounded(key, of_key), _rounded(value, of_value)


def _rounded(rows: Tensor, stated: float | None) -> Tensor:
    """Return ``rows [..., D]`` rounded to multiples of their scales that e4m3 has.

    A scale is ``stated`` or the row's largest element over 448.
    """
    wide = rows.to(torch.float32)
    top = wide.abs().max(dim=-1, keepdim=True).values
    scale = torch.full_like(top, stated) if stated is not None else top / torch.full_like(top, 448)
    steps = (wide / scale).nan_to_num(0.0).clamp(-448, 448)
    return (steps.to(torch.float8_e4m3fn).to(torch.float32) * scale).to(rows.dtype)


EXACT = Rounding()
"""Keys and values stay as they are."""


class _RoundingCache(DynamicCache):  # type: ignore[misc]
    """This cache of transformers' rounds what it is given."""

    def __init__(self, config: PretrainedConfig, rounding: Rounding) -> None:
        super().__init__(config=config)
        self._rounding = rounding

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = self._rounding(layer_idx, key_states, value_states)
        kept: tuple[Tensor, Tensor] = super().update(*rounded, layer_idx, *rest, **named)
        return kept


class GrowingAttention:
    """A ``GrowingAttention`` is an ``AttentionCall`` of one request. It attends over all keys seen,
    and keeps them by layer. A parallel drafter's block sees its own later keys, all else is causal.
    """

    def __init__(self, target: Target, tokens: Sequence[int], rounding: Rounding = EXACT) -> None:
        """``tokens`` begin the request's sequence. ``rounding`` is of its keys and values."""
        self.rounding = rounding
        self.request_keys = request_keys([tokens], target.device)
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        """Keep keys and values of rows that attend to nothing, as a parallel drafter's context."""
        key, value = self.rounding(layer_idx, key, value)
        if layer_idx in self.seen:
            before = self.seen[layer_idx]
            key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        self.seen[layer_idx] = key, value

    def attend(self, layer_idx: int, qkv: AttentionInput) -> Tensor:
        query = qkv.query
        self.keep(layer_idx, qkv.key, qkv.value)
        key, value = self.seen[layer_idx]
        new, total = query.shape[2], key.shape[2]
        ones = torch.ones(new, total, dtype=torch.bool, device=query.device)
        mask = ones.tril(total - new) if qkv.is_causal else ones.clone()
        if qkv.sliding_window is not None:
            mask &= ones.triu(total - new - qkv.sliding_window + 1)
        if qkv.sinks is not None:
            # One key more, of zeros, to whose score the mask adds the sink.
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
            added = query.new_zeros(query.shape[1], new, total + 1)
            added[..., :total].masked_fill_(~mask, float("-inf"))
            added[..., total] = qkv.sinks[:, None]
            mask = added
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=qkv.scaling, enable_gqa=True
        )
        return out.transpose(1, 2)


@torch.inference_mode()
@by_definition()
def reference_states(
    target: Target,
    tokens: Sequence[int],
    attention: GrowingAttention | None = None,
    rounding: Rounding = EXACT,
) -> HiddenStates:
    """Return the target's hidden states ``[1, n, H]`` over ``tokens``, from the first of them.

    ``attention``, if it is given, has its own rounding of keys and values.
    """
    ids = torch.tensor([list(tokens)], device=target.device)
    positions = torch.arange(len(tokens), device=target.device)[None]
    return target.forward(ids, positions, attention or GrowingAttention(target, tokens, rounding))


def head_form(head: DraftHead, states: HiddenStates) -> Tensor:
    """Return the hidden states that the head's family is fed, ``[B, S, H]``.

    Those of an EAGLE-3 head are three side by side, ``[B, S, 3H]``, and those of a parallel drafter
    are as many as it reads.
    """
    if head.family.reads_aux:
        return torch.cat(states.aux, dim=-1)
    return states.post_norm if head.family.hidden_in == NormSide.POST else states.pre_norm


@torch.inference_mode()
@by_definition()
def reference_draft_logits(
    target: Target,
    head: DraftHead,
    tokens: Sequence[int],
    k: int,
    drafts: Sequence[int] = (),
    rounding: Rounding = EXACT,
) -> Tensor:
    """Return the logits ``[k, V]`` of the k drafts after ``tokens``, whose newest has no KV yet.

    Each draft follows the one before it. The first ones follow ``drafts`` as far as these go, and
    the others follow the likeliest token.

    Draft j of a module of its own comes of that module's pass over the whole sequence. Row i has
    token i + j beside the hidden state. A module that runs again goes on by one row at a time. The
    drafts of a parallel drafter follow none, so it is given no ``drafts``.
    """
    attention = GrowingAttention(target, tokens, rounding)
    hidden = head_form(head, reference_states(target, tokens[:-1], attention))
    device, num_rows = target.device, len(tokens) - 1
    if isinstance(head, DFlashHead):
        return _block_logits(target, head, hidden, tokens[-1], k, attention)
    following = torch.tensor([list(tokens[1:])], device=device)
    positions = torch.arange(num_rows, device=device)[None]
    logits: list[Tensor] = []
    for step in range(k):
        module = head.mtp_modules[min(step, head.num_modules - 1)]
        embeds = (module.embedding or target.model.get_input_embeddings())(following)
        if step < head.num_modules and head.family.first_embed == FirstEmbedding.ZEROED:
            embeds[:, 0] = 0
        rope = module.rope(target, embeds, positions)
        block_out = module(embeds, hidden, rope, positions, attention)
        normed = module.to_logits_input(block_out)
        logits.append(_draft_logits(target, module, normed[:, -1:])[0, -1])
        chosen = logits[-1].argmax(-1)
        if step < len(drafts):
            chosen = torch.full_like(chosen, drafts[step])
        chain = normed if head.family.chain == NormSide.POST else block_out
        if step + 1 < head.num_modules:
            following = torch.cat([following[:, 1:], chosen[None, None]], dim=1)
            hidden = chain if head.family.feed == ModuleFeed.CHAIN else hidden
        else:
            following, hidden = chosen[None, None], chain[:, -1:]
            positions = torch.full_like(following, num_rows + step + 1 - head.num_modules)
    return torch.stack(logits)


def _block_logits(
    target: Target,
    head: DFlashHead,
    hidden: Tensor,
    newest: int,
    k: int,
    attention: GrowingAttention,
) -> Tensor:
    """Return the logits ``[k, V]`` of a block after the context of ``hidden [1, n, F]``."""
    num_rows = hidden.shape[1]
    context = torch.arange(num_rows, device=target.device)[None]
    head.keep_context(hidden, head.rope(target, hidden, context), attention)
    tokens = torch.tensor([[newest, *[head.form.mask_token] * k]], device=target.device)
    positions = torch.arange(num_rows, num_rows + k + 1, device=target.device)[None]
    embeds = target.model.get_input_embeddings()(tokens)
    block_out = head(embeds, None, head.rope(target, embeds, positions), positions, attention)
    return _draft_logits(target, head, head.to_logits_input(block_out))[0, 1:]


def _draft_logits(target: Target, module: MtpModule, normed: Tensor) -> Tensor:
    """Return the logits ``[..., V]`` of ``normed [..., H]`` over the target's vocabulary.

    Rows that were gathered from the target's output matrix are not read. Products with all of it
    take their place, so that rows gathered wrongly show.
    """
    if not module.has_target_rows:
        return module.over_vocabulary(target.logits(normed, module.output), target.vocab_size)
    whole = target.logits(normed)
    assert module.target_ids is not None
    is_left_out = torch.ones(target.vocab_size, dtype=torch.bool, device=whole.device)
    is_left_out[module.target_ids] = False
    return whole.masked_fill(is_left_out, torch.finfo(whole.dtype).min)


@contextmanager
def own_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run every part of the model with transformers' attention ``name``, and restore its own
    afterwards.

    Greedy decoding is plain meanwhile. A checkpoint's own generation settings may hold an end of
    sequence or a repetition penalty, which act even if nothing is sampled.
    """
    before = [(config, config._attn_implementation) for config in _configs(model)]
    generation = model.generation_config
    try:
        for config, _ in before:
            config._attn_implementation = name
        model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
        yield
    finally:
        model.generation_config = generation
        # Parents come first, as listed, because setting one sets its nested configs too.
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Return every config that a part of the model reads, the model's own first, each once."""
    found = [model.config, model.config.get_text_config()]
    found += [part.config for part in model.modules() if hasattr(part, "config")]
    return list({id(config): config for config in found}.values())


class Plain:
    """A ``Plain`` decodes greedily by transformers on the same weights. The draft head has no part
    in it.
    """

    def __init__(
        self,
        target: Target,
        prompts: Sequence[tuple[int, ...]],
        rounding: Rounding = EXACT,
        *,
        is_w8a8: bool = False,
    ) -> None:
        """``rounding`` is that of the cache, from which transformers reads keys and values.

        ``is_w8a8``: activations are quantised, and the noise is measured of that too.
        """
        self.is_w8a8 = is_w8a8
        self.target = target
        self.rounding = rounding
        self.prompts = prompts
        self._tokens: dict[tuple[int, ...], list[int]] = {}
        self._last_states: dict[tuple[int, ...], Tensor] = {}

    @property
    def attention(self) -> str:
        """transformers' attention that decodes. Its ``sdpa`` knows no sinks, and models that have
        them say so."""
        return "sdpa" if self.target.model._supports_sdpa else "eager"

    def tokens(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """Return the ``count`` greedy tokens after ``prompt``. An end of sequence is ignored."""
        if len(self._tokens.get(prompt, ())) < count:
            self._tokens[prompt] = self._generate(prompt, count)
        return self._tokens[prompt][:count]

    @by_definition()
    def _generate(self, prompt: tuple[int, ...], count: int) -> list[int]:
        ids = torch.tensor([prompt], device=self.target.device)
        with own_attention(self.target.model, self.attention), self.target.as_request(prompt):
            out = self.target.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                **self._cache(GENERATE_CACHE),
            )
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    def _cache(self, name: str = "past_key_values") -> dict[str, object]:
        """Return what a forward is given to round keys and values: nothing if they stay.

        ``name`` is what it calls its cache.
        """
        if self.rounding is EXACT:
            return {}
        cache = _RoundingCache(self.target.model.config, self.rounding)
        return {name: cache, "use_cache": True}

    @torch.inference_mode()
    @by_definition()
    def states(self, tokens: Sequence[int], attention: str | None = None) -> Tensor:
        """Return the last hidden states ``[n, H]`` over ``tokens``, after the final norm."""
        ids = torch.tensor([list(tokens)], device=self.target.device)
        name = attention or self.attention
        with own_attention(self.target.model, name), self.target.as_request(tokens):
            out = self.target.backbone(input_ids=ids, **({"use_cache": False} | self._cache()))
        states: Tensor = out.last_hidden_state[0]
        return states

    @torch.inference_mode()
    @by_definition()
    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Return the logits ``[V]`` of the token after ``tokens``, in float32."""
        # Near-ties come at the same few places of the same few prompts in every batch.
        if (key := tuple(tokens)) not in self._last_states:
            self._last_states[key] = self.states(tokens)[-1].clone()
        return self.target.logits(self._last_states[key]).float()

    @torch.inference_mode()
    @by_definition()
    def next_token(self, tokens: Sequence[int]) -> int:
        """Return the token after ``tokens``, computed anew."""
        return int(self.target.logits(self.states(tokens)[-1]).argmax())

    @property
    def noise(self) -> float:
        """Return how far this model's forward is from itself.

        It is the largest difference of a logit between two implementations of attention, over the
        prompts' last positions. They are transformers' two, or its only one and
        ``GrowingAttention``.

        Where activations are quantised, a last bit decides now and then which FP8 number one
        becomes. So ``NOISE_TRIES`` forwards with moved embeddings are compared too.
        """
        return self._noises[0]

    @property
    def relative_noise(self) -> float:
        """Return the same two forwards' relative error, of hidden states or logits, whichever is
        more.
        """
        return self._noises[1]

    @cached_property
    def _noises(self) -> tuple[float, float]:
        noises = [self._noises_of(prompt) for prompt in self.prompts]
        return max(noise for noise, _ in noises), max(relative for _, relative in noises)

    @torch.inference_mode()
    @by_definition()
    def _noises_of(self, prompt: Sequence[int]) -> tuple[float, float]:
        ours = self.states(prompt)[-NOISE_POSITIONS:]
        our_logits = self.target.logits(ours).float()
        noise = relative = 0.0
        for other in self._others(prompt):
            its = other[-NOISE_POSITIONS:]
            its_logits = self.target.logits(its).float()
            noise = max(noise, (our_logits - its_logits).abs().max().item())
            errors = relative_error(ours, its), relative_error(our_logits, its_logits)
            relative = max(relative, *errors)
        return noise, relative

    def _others(self, prompt: Sequence[int]) -> Iterator[Tensor]:
        """Yield the states of forwards that differ from ``states`` by rounding alone."""
        if self.attention == "eager":
            yield reference_states(self.target, prompt, rounding=self.rounding).post_norm[0]
        else:
            yield self.states(prompt, "eager")
        for seed in range(NOISE_TRIES if self.is_w8a8 else 0):
            with moved_embeddings(self.target, seed):
                moved = self.states(prompt)
            yield moved


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    difference = (got.float() - expected.float()).norm()
    return float(difference / expected.float().norm())
