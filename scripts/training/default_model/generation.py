"""Text that the target generates, and how much of it counts before it goes round in circles."""

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from default_model.config import EOS_ID, Shapes
from default_model.corpus import Corpus
from mtp_training.model import Model

REPEAT_TOKENS = 8


@dataclass
class GeneratedText:
    """``ids [N, L]``: corpus prompts with the target's greedy continuation; ``counted [N, L]``
    is false from where a continuation ends or begins to go round in circles."""

    ids: Tensor
    counted: Tensor

    def sample(self, batch: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.ids), (batch,), device=self.ids.device)
        return self.ids[chosen], self.counted[chosen]


def generate_text(
    model: Model, corpus: Corpus, shapes: Shapes, prompts_per_length: int
) -> GeneratedText:
    """Prompts of several lengths from ``corpus``, continued to one common length."""
    start = time.monotonic()
    generator = generation_copy(model.target.model, torch.bfloat16)
    ids, counted = [], []
    for prompt_length in shapes.prompt_lengths:
        prompts = corpus.windows(prompts_per_length, prompt_length)
        full = greedy(generator, prompts, shapes.generated_length - prompt_length)
        ids.append(full)
        counted.append(counted_tokens(full, prompt_length))
    text = GeneratedText(torch.cat(ids), torch.cat(counted))
    share, seconds = text.counted.float().mean().item(), time.monotonic() - start
    print(f"{text.ids.numel()} tokens, {share:.0%} counted, in {seconds:.1f} s", flush=True)
    return text


def generation_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same weights behind transformers' own attention and KV cache."""
    config = copy.deepcopy(model.config)
    copied = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    copied.load_state_dict(model.state_dict())
    return copied.to(model.device).eval()


@torch.no_grad()
def greedy(model: PreTrainedModel, prompts: Tensor, num_new_tokens: int) -> Tensor:
    """``[B, P]`` prompts to ``[B, P + num_new_tokens]``, filled with end-of-text after one."""
    full = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=num_new_tokens,
        do_sample=False,
        eos_token_id=EOS_ID,
        pad_token_id=EOS_ID,
    )
    return F.pad(full, (0, prompts.shape[1] + num_new_tokens - full.shape[1]), value=EOS_ID)


def counted_tokens(full: Tensor, prompt_length: int) -> Tensor:
    """``[B, L]``: the prompt, and what was generated before an end or a repeated 8-gram."""
    ends = torch.cat([distinct_length(part[:, prompt_length:]) for part in full.split(1024)])
    return torch.arange(full.shape[1], device=full.device) < prompt_length + ends[:, None]


def distinct_length(tokens: Tensor) -> Tensor:
    """``[B, T]`` to ``[B]``: the tokens before the first 8-gram that occurred earlier in the row,
    and up to the first end-of-text."""
    count = tokens.shape[1] - REPEAT_TOKENS + 1
    same = tokens[:, :, None] == tokens[:, None, :]
    runs = same[:, :count, :count].clone()
    for shift in range(1, REPEAT_TOKENS):
        runs &= same[:, shift : shift + count, shift : shift + count]
    repeated = first_true(runs.tril(-1).any(-1), otherwise=tokens.shape[1])
    return torch.minimum(repeated, ended_length(tokens))


def ended_length(tokens: Tensor) -> Tensor:
    """``[B, T]`` to ``[B]``: the tokens up to the first end-of-text, itself included."""
    return first_true(tokens == EOS_ID, otherwise=tokens.shape[1] - 1) + 1


def first_true(flags: Tensor, otherwise: int) -> Tensor:
    """``[B, T]`` to ``[B]``: the index of each row's first true entry."""
    return torch.where(flags.any(-1), flags.int().argmax(-1), otherwise)
