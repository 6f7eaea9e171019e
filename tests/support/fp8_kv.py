"""FP8 keys and values written down by hand: what a number is rounded to, and a cache that does."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from cgbench.models.support import GENERATE_CACHE

Stated = dict[int, tuple[float, float]]


def rounded_by_hand(numbers: Tensor) -> Tensor:
    """To the nearest e4m3 number, to an even one of two: three bits of mantissa, exponents from
    -6 on, at most 448."""
    wide = numbers.double()
    exponent = wide.abs().clamp(min=2.0**-30).log2().floor().clamp(min=-6)
    step = torch.exp2(exponent - 3)
    return ((wide / step).round() * step).clamp(-448, 448)


def kept_by_hand(rows: Tensor, stated: float | None = None) -> Tensor:
    """What ``rows [..., D]`` are worth once they are kept."""
    wide = rows.float()
    top = wide.abs().amax(-1, keepdim=True)
    scale = top / torch.full_like(top, 448)
    scale = scale.clamp(min=2.0**-64) if stated is None else torch.full_like(scale, stated)
    return (rounded_by_hand(wide / scale).float() * scale).to(rows.dtype)


class HandCache(DynamicCache):
    """Keeps keys and values of every layer as ``kept_by_hand`` has them."""

    def __init__(self, model: PreTrainedModel, stated: Stated) -> None:
        super().__init__(config=model.config)
        self.stated = stated

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *rest: Any, **named: Any) -> Any:
        of_key, of_value = self.stated.get(layer_idx, (None, None))
        kept = kept_by_hand(key, of_key), kept_by_hand(value, of_value)
        return super().update(*kept, layer_idx, *rest, **named)


def decoded_by_hand(
    model: PreTrainedModel, prompts: list[list[int]], count: int, stated: Stated | None = None
) -> list[list[int]]:
    """Greedy tokens of transformers over such a cache, one request at a time."""
    tokens = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
            **{GENERATE_CACHE: HandCache(model, stated or {})},
        )
        tokens.append(out[0, len(prompt) :].tolist())
    return tokens
