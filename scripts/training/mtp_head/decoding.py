"""cgbench's own engine over a loaded model: to make the text, and to measure the head on it."""

from cgbench.engine.acceptance import AcceptanceRule
from cgbench.engine.backends import resolve_backend
from cgbench.engine.deployment import make_state
from cgbench.engine.generation import Generated, generate
from cgbench.engine.graphs import GraphSet, capture_plan
from cgbench.engine.iteration import Speculator
from cgbench.engine.kv import KvCache
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import EagerRunner, GraphRunner, Runner
from cgbench.models.loader import LoadedModel
from cgbench.models.target import probe_kv_shapes
from cgbench.planning import PlanRequest, plan
from cgbench.words import Scope

MAX_PREFILL_TOKENS = 32768


class Decoder:
    """Decodes waves of prompts with one k and one acceptance rule; captured where there is CUDA."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        spec_tokens: int,
        batch_size: int,
        room: int,
        accept: AcceptanceRule,
    ) -> None:
        """``room``: KV rows a request needs, in tokens: prompt, new tokens and 2k."""
        target, head = model.target, model.head if spec_tokens else None
        shapes = probe_kv_shapes(target, head)
        cache = KvCache(
            shapes.kv_shapes,
            max_batch_size=batch_size,
            room=room,
            dtype=target.dtype,
            device=target.device,
            state_shapes=shapes.state_shapes,
            query_len=spec_tokens + 1,
        )
        backend = resolve_backend("auto", target.device).decode
        self.spec = Speculator(target, head, cache, backend, accept)
        self.state = make_state(self.spec, spec_tokens, batch_size, model.eos_token_ids)
        self._graphs: GraphSet | None = None
        self.runner = self._make_runner(batch_size)

    def _make_runner(self, batch_size: int) -> Runner:
        if self.spec.target.device.type != "cuda":
            return EagerRunner(self.spec, self.state)
        sizes = {batch_size, *(2**power for power in range(batch_size.bit_length()))}
        chosen = plan(
            PlanRequest(
                spec_tokens=self.state.spec_tokens,
                max_batch_size=batch_size,
                policy="explicit",
                capture_sizes=tuple(sorted(sizes)),
            )
        )
        self._graphs = capture_plan(self.spec, self.state, chosen, Scope.ITERATION)
        return GraphRunner(self.spec, self.state, chosen, self._graphs)

    def decode(self, prompts: list[list[int]], max_new_tokens: int, seed: int = 0) -> Generated:
        """One wave, at most ``batch_size`` prompts, each to its end."""
        prefilled = prefill(self.spec, prompts, MAX_PREFILL_TOKENS, seed)
        begin_decoding(self.spec, self.state, prefilled, tokens_left=max_new_tokens - 1, seed=seed)
        return generate(self.runner, prefilled.last.tolist())

    def release(self) -> None:
        """Free the graphs; nothing may be decoded after."""
        if self._graphs is not None:
            self._graphs.release()
