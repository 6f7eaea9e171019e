"""Decode the same prompts with the same weights in transformers' own ways."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CompileConfig,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cgbench.engines.peer_rounds import VERIFY_CALLS, Peer, PeerError
from cgbench.engines.peer_rows import Round
from cgbench.engines.wall_time import synchronize, timed
from cgbench.models.loading_plan import LoadingPlan
from cgbench.models.random_weights import random_target
from cgbench.models.support import auto_class_for
from cgbench.words import Quant

# ``generate_batch`` warns that its manager is kept. Here that is intended, because the requests
# stay the same.
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)

NEEDS_CUDA = "reduce-overhead is CUDA graphs: it needs a CUDA device"
# This is a share of what is free. The weights of two or three models and this tool's KV are there
# already.
CACHE_SHARE = 0.3


def load_peer(plan: LoadingPlan) -> PreTrainedModel:
    """Load the plan's weights into an unchanged transformers model. A preset's weights are drawn
    again.

    Raise ``PeerError`` for a GGUF file or FP8 weights.
    """
    request = plan.request
    if plan.gguf_file is not None:
        raise PeerError("a GGUF file: give a folder of safetensors")
    if plan.quant is not Quant.NONE:
        raise PeerError("FP8 weights: give the plain checkpoint or preset")
    implementations: dict[str, Any] = {"attn_implementation": "sdpa"}
    if plan.skeleton.target.has_mixtures:
        implementations["experts_implementation"] = "grouped_mm"
    if request.preset is None:
        model = auto_class_for(plan.config).from_pretrained(
            request.path, config=plan.config, dtype=request.dtype, **implementations
        )
    else:
        model = random_target(plan, **implementations)
    model = model.to(request.device).eval()
    # Every peer decodes to the length asked for.
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0, do_sample=False)
    return model


def check_same_weights(peer: PreTrainedModel, ours: PreTrainedModel) -> None:
    """Raise ``PeerError`` if the shared embedding, lm_head or last norm differ."""
    pairs = (
        (peer.get_input_embeddings(), ours.get_input_embeddings()),
        (peer.get_output_embeddings(), ours.get_output_embeddings()),
        (peer.get_decoder().norm, ours.get_decoder().norm),
    )
    if not all(torch.equal(theirs.weight, mine.weight) for theirs, mine in pairs):
        raise PeerError("the peer's weights are not this tool's")


class StepClock(StoppingCriteria):  # type: ignore[misc]  # transformers is not followed.
    """A ``StepClock`` counts decode steps. Its clock starts when the prefill's token is there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop: Tensor | None = None
        self.calls = 0
        self.start = 0.0
        self.first_length = 0

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        if not self.calls:
            synchronize(self._device)
            self._stop = torch.zeros(len(input_ids), dtype=torch.bool, device=self._device)
            self.first_length = input_ids.shape[1]
            self.start = time.perf_counter()
        self.calls += 1
        assert self._stop is not None
        return self._stop


class Generate:
    """This peer calls ``generate``, greedy, to ``new_tokens`` tokens. The time runs from the first
    of them to the last.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int, **how: Any
    ) -> None:
        self._model = model
        self._ids = torch.tensor(prompts, device=model.device)
        self._new_tokens = new_tokens
        self._how = how

    def round(self, seed: int) -> Round:
        device = self._model.device
        clock = StepClock(device)
        tokens = self._model.generate(
            self._ids,
            attention_mask=torch.ones_like(self._ids),
            max_new_tokens=self._new_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
            **self._how,
        )
        synchronize(device)
        seconds = time.perf_counter() - clock.start
        made = tokens.shape[1] - self._ids.shape[1]
        if made != self._new_tokens:
            raise PeerError(f"generate made {made} of {self._new_tokens} tokens")
        timed_tokens = (tokens.shape[1] - clock.first_length) * len(tokens)
        return Round(seconds, clock.calls - 1, timed_tokens)


def make_static(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> Generate:
    """Return a peer that calls ``generate`` with a static cache, which it compiles by itself on
    CUDA. Raise ``PeerError`` without CUDA.
    """
    if model.device.type != "cuda":
        raise PeerError(NEEDS_CUDA)
    return Generate(
        model,
        prompts,
        new_tokens,
        cache_implementation="static",
        compile_config=CompileConfig(mode="reduce-overhead"),
    )


def make_mtp(model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generate:
    """Return a peer that calls ``generate(use_mtp=True)``, with as many drafts as the checkpoint
    has MTP modules.

    Raise ``PeerError`` for more than one request, for a model without such a head, and for a
    preset.
    """
    if len(prompts) != 1:
        raise PeerError("use_mtp decodes one request. Give --batch-size 1")
    if getattr(model.config.get_text_config(), "num_mtp_layers", None) is None:
        raise PeerError(f"transformers knows no MTP head for {type(model).__name__}")
    if not model.name_or_path:
        raise PeerError("use_mtp reads the head from the checkpoint, and a preset has none")
    return Generate(model, prompts, new_tokens, use_mtp=True)


class ContinuousBatching:
    """This peer calls ``generate_batch`` and keeps its manager from round to round. Times are the
    tokens' own timestamps.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], new_tokens: int
    ) -> None:
        self._model = model
        self._prompts = [list(prompt) for prompt in prompts]
        self._config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )

    def round(self, seed: int) -> Round:
        outputs = list(
            self._model.generate_batch(
                inputs=self._prompts,
                generation_config=self._config,
                continuous_batching_config=_batching_config(),
                record_timestamps=True,
                progress_bar=False,
                persistent_manager=True,
            ).values()
        )
        if len(outputs) != len(self._prompts):
            raise PeerError(f"generate_batch finished {len(outputs)} of {len(self._prompts)}")
        for output in outputs:
            if output.error is not None:
                raise PeerError(f"generate_batch: {output.error}")
            if len(output.generated_tokens) != self._config.max_new_tokens:
                raise PeerError(f"generate_batch made {len(output.generated_tokens)} tokens")
        steps = self._config.max_new_tokens - 1
        # The time runs from when every request has its first token to when every one has its last.
        start = max(output.timestamps[0] for output in outputs)
        end = max(output.timestamps[-1] for output in outputs)
        return Round(end - start, steps, steps * len(outputs))


def _batching_config() -> Any:
    from transformers import ContinuousBatchingConfig

    wanted = {"max_memory_percent": CACHE_SHARE, "allow_block_sharing": False}
    known = {each.name for each in fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(**{k: v for k, v in wanted.items() if k in known})


class StaticVerify:
    """This peer runs a forward of ``query_len`` tokens a request over a static cache that holds the
    prompts. Raise ``PeerError`` for a cache with sliding windows, and for ``compiled`` without
    CUDA.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        query_len: int,
        calls: int,
        *,
        compiled: bool,
    ) -> None:
        if compiled and model.device.type != "cuda":
            raise PeerError(NEEDS_CUDA)
        ids = torch.tensor(prompts, device=model.device)
        self._model = model
        self._context = ids.shape[1]
        self._calls = calls
        # There is no room to spare, because masked attention reads all of it.
        room = self._context + calls * query_len
        self._cache = StaticCache(config=model.config, max_cache_len=room)
        if any(layer.is_sliding for layer in self._cache.layers):
            raise PeerError("a static cache with sliding windows cannot be set back")
        self._tokens = ids[:, :query_len].contiguous()
        self._device = model.device
        with torch.no_grad():
            model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._call = self._forward
        if compiled:
            # It is compiled apart, so that what dynamo learns of generate's shapes is not used
            # here.
            forward = torch.compile(self._forward, mode="reduce-overhead", dynamic=False)
            self._call = lambda: _next_step(forward)

    def _forward(self) -> Tensor:
        out = self._model(self._tokens, past_key_values=self._cache, use_cache=True)
        logits: Tensor = out.logits
        return logits

    def round(self, seed: int) -> Round:
        for layer in self._cache.layers:
            # It is set in place, because the compiled forward reads this tensor at its address.
            layer.cumulative_length.fill_(self._context)
        with torch.no_grad():
            seconds = timed(self._call, self._calls, self._device)
        return Round(seconds, self._calls, self._calls * self._tokens.numel())


def _next_step(forward: Callable[[], Tensor]) -> Tensor:
    """Begin a new replay and run it. Then the outputs of the one before may be overwritten."""
    torch.compiler.cudagraph_mark_step_begin()
    return forward()


class TransformersEngine:
    """This engine is transformers with the plan's weights, which must be those of ``reference``.

    A model is loaded when a peer first asks for it. One model serves ``generate`` and the forwards.
    Another serves ``generate_batch``, whose manager replaces its model's attention while it lives.
    """

    def __init__(
        self,
        plan: LoadingPlan,
        reference: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        spec_tokens: int,
        new_tokens: int,
    ) -> None:
        self._plan = plan
        self._reference = reference
        self._prompts = prompts
        self._query_len = spec_tokens + 1
        self._new_tokens = new_tokens

    @cached_property
    def model(self) -> PreTrainedModel:
        """Return the model for ``generate`` and the forwards, loaded at first use."""
        return self._load()

    @cached_property
    def batch_model(self) -> PreTrainedModel:
        """Return the model for ``generate_batch``, loaded at first use."""
        return self._load()

    def _load(self) -> PreTrainedModel:
        model = load_peer(self._plan)
        check_same_weights(model, self._reference)
        return model

    def peers(self) -> dict[str, Callable[[], Peer]]:
        prompts, new_tokens = self._prompts, self._new_tokens
        return {
            "dynamic": lambda: Generate(self.model, prompts, new_tokens),
            "static": lambda: make_static(self.model, prompts, new_tokens),
            "mtp": lambda: make_mtp(self.model, prompts, new_tokens),
            "batch": lambda: ContinuousBatching(self.batch_model, prompts, new_tokens),
            "verify-static": partial(self._verify, compiled=False),
            "verify-compiled": partial(self._verify, compiled=True),
        }

    def _verify(self, *, compiled: bool) -> StaticVerify:
        return StaticVerify(
            self.model, self._prompts, self._query_len, VERIFY_CALLS, compiled=compiled
        )

    def stop(self) -> None:
        if "batch_model" in self.__dict__:
            self.batch_model.destroy_cached_continuous_batching_manager()
