"""Drive transformers by its forward: greedy, over a dynamic cache, one token a request a step."""

import time
from typing import Any

from cgbench.engines.drivers.driver import SteppedDriver, peak_memory_bytes
from cgbench.engines.drivers.messages import JsonObject, Prefill, Prefilled, Start, Started


class TransformersDriver(SteppedDriver):
    """A ``TransformersDriver`` is a transformers model, eager and without drafts."""

    def __init__(self) -> None:
        self._model: Any = None
        self._cache: Any = None
        self._last: Any = None
        self._made: list[Any] = []
        self._budget = 0

    def start(self, asked: Start) -> Started:
        """Load the model. Raise ``ValueError`` if drafts are asked for."""
        if asked.spec_tokens != [0]:
            raise ValueError("transformers decodes without drafts here")
        begin = time.perf_counter()
        import torch
        import transformers

        imported = time.perf_counter()
        torch.manual_seed(asked.seed)
        dtype = getattr(torch, asked.dtype)
        made: JsonObject = {"attn_implementation": "sdpa", **asked.arguments}
        config = config_of(asked.model)
        if asked.is_dummy:
            with torch.device(asked.device):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, **made)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                asked.model, config=config, dtype=dtype, **made
            )
        self._model = model.to(asked.device).eval()
        self._budget = asked.max_num_batched_tokens
        self.synchronize()
        return Started(
            version=transformers.__version__,
            import_s=imported - begin,
            start_s=time.perf_counter() - imported,
            memory_bytes=peak_memory_bytes(),
            facts={
                "torch": torch.__version__,
                "attention": str(model.config._attn_implementation),
                "graph_mode": "NONE",
            },
        )

    def prefill(self, asked: Prefill) -> Prefilled:
        import torch
        from transformers import DynamicCache

        begin = time.perf_counter()
        self._cache = DynamicCache(config=self._model.config)
        ids = torch.tensor(asked.prompts, device=self._model.device)
        # All requests have one length, so a chunk of positions is a forward of the whole batch.
        width = max(1, self._budget // len(ids))
        for first in range(0, ids.shape[1], width):
            self._last = self._forward(ids[:, first : first + width])
        self._made = [self._last]
        self.synchronize()
        return Prefilled(time.perf_counter() - begin, 1, [1] * len(ids))

    def step(self) -> list[int]:
        self._last = self._forward(self._last)
        self._made.append(self._last)
        self.synchronize()
        return [1] * len(self._last)

    def _forward(self, ids: Any) -> Any:
        import torch

        with torch.inference_mode():
            out = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1:].argmax(-1)

    def tokens(self) -> list[list[int]]:
        import torch

        made: list[list[int]] = torch.cat(self._made, 1).tolist()
        return made

    def stop(self) -> None:
        self._model = self._cache = None


def config_of(path: str) -> Any:
    """Return the configuration of a checkpoint. MiMo's is Qwen2's, and transformers has no such
    type.
    """
    from transformers import AutoConfig, PretrainedConfig, Qwen2Config

    raw, _ = PretrainedConfig.get_config_dict(path)
    if raw.get("model_type") == "mimo":
        return Qwen2Config.from_dict(raw)
    return AutoConfig.from_pretrained(path)
