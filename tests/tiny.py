"""Tiny checkpoints, made in the test: real layouts, random weights, a few thousand parameters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from cgbench.engine.acceptance import AcceptanceRule, Greedy
from cgbench.engine.attention import DECODE_BACKENDS
from cgbench.engine.iteration import Speculator
from cgbench.engine.kv import KvCache
from cgbench.engine.state import DecodeState
from cgbench.models.families import MIMO
from cgbench.models.head import DraftHead
from cgbench.models.loading import LoadedModel, ModelRequest, load_model
from cgbench.models.target import probe_kv_shapes

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
    "mistral": MistralConfig(**SHAPE, sliding_window=9),
    "mimo": Qwen2Config(**SHAPE),
}


def make_checkpoint(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    eos: int | None = None,
    std: float = 0.3,
    **shape: Any,
) -> Path:
    """A checkpoint of ``kind`` in ``folder``, its MTP head in MiMo's names beside the target.

    ``std`` is far above a trained model's, so that greedy decoding does not settle on one token.
    """
    torch.manual_seed(seed)
    config = type(CONFIGS[kind]).from_dict(CONFIGS[kind].to_dict() | shape | {"eos_token_id": eos})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, std)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    head = DraftHead(MIMO, model)
    randomise(head, std)
    add_head(folder, {name: head.state_dict()[ours] for name, ours in head_names(head).items()})
    if kind == "mimo":
        edit_config(folder, model_type="mimo", architectures=["MiMoForCausalLM"])
    return folder


@torch.no_grad()
def randomise(module: torch.nn.Module, std: float) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=std)
        else:
            parameter.normal_(mean=1.0, std=0.1)


def head_names(head: DraftHead) -> dict[str, str]:
    """Checkpoint tensor name -> ``DraftHead`` tensor name."""
    return {MIMO.tensor_name(ours): ours for ours in head.state_dict()}


def add_head(folder: Path, tensors: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    both = load_file(file) | {name: t.contiguous() for name, t in tensors.items()}
    save_file(both, file, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def add_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 entries: one token a byte, any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def load_tiny(folder: Path, *, with_head: bool = True, device: str = "cpu") -> LoadedModel:
    return load_model(
        ModelRequest(str(folder), None, with_head, torch.device(device), torch.float32)
    )


def make_speculator(
    model: LoadedModel,
    *,
    max_batch_size: int,
    room: int,
    attention: str = "sdpa",
    accept: AcceptanceRule | None = None,
) -> Speculator:
    target = model.target
    cache = KvCache(
        probe_kv_shapes(target, model.head).kv_shapes,
        max_batch_size=max_batch_size,
        room=room,
        dtype=target.dtype,
        device=target.device,
    )
    backend = DECODE_BACKENDS[attention]
    return Speculator(target, model.head, cache, backend, accept or Greedy())


def make_state(
    spec: Speculator, spec_tokens: int, max_batch_size: int, eos: Sequence[int] = ()
) -> DecodeState:
    return DecodeState(
        spec_tokens=spec_tokens,
        max_batch_size=max_batch_size,
        scratch_slot=spec.cache.scratch_slot,
        hidden_size=spec.target.hidden_size,
        dtype=spec.target.dtype,
        device=spec.target.device,
        eos_token_ids=tuple(eos),
        draft_vocab_size=spec.target.vocab_size if spec.accept.samples_drafts else 0,
    )


def random_prompts(count: int, *, vocab: int = 64, seed: int = 0) -> list[list[int]]:
    """Prompts of unequal length, 3 tokens and more."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 24, (count,), generator=generator).tolist()
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


def reference_model(folder: Path) -> PreTrainedModel:
    """The same weights through transformers alone, with its own attention and cache."""
    from cgbench.models.checkpoint import read_config

    return AutoModelForCausalLM.from_pretrained(
        folder, config=read_config(str(folder)), dtype=torch.float32, attn_implementation="eager"
    ).eval()


def greedy_reference(
    model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int, eos: int | None = None
) -> list[list[int]]:
    """Plain greedy decoding by transformers, one request at a time."""
    out = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos,
            pad_token_id=0,
        )
        out.append(tokens[0, len(prompt) :].tolist())
    return out
