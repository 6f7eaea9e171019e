"""Tiny checkpoints, made in the test: real layouts, random weights, a few thousand parameters."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from cgbench.engine.acceptance import AcceptanceRule, Greedy
from cgbench.engine.backends import DECODE_BACKENDS
from cgbench.engine.deployment import make_state as make_state
from cgbench.engine.generation import Generated, generate
from cgbench.engine.iteration import Speculator
from cgbench.engine.kv import KvCache
from cgbench.engine.prefill import begin_decoding, prefill
from cgbench.engine.runner import Runner
from cgbench.models.checkpoint import config_from_dict, raw_config
from cgbench.models.experts import expert_parts
from cgbench.models.heads.families import MIMO, HeadFamily
from cgbench.models.heads.head import DraftHead, HeadForm
from cgbench.models.heads.head_search import types_in
from cgbench.models.heads.head_wiring import CONFIG_FIELD
from cgbench.models.loader import LoadedModel, load_model
from cgbench.models.loading_plan import Loading
from cgbench.models.support import auto_class_for
from cgbench.parallel.ranks import ALONE, Ranks
from cgbench.request.choices import KvDtype, QuantMode

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

_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED: dict[str, Any] = _EXPERTS | {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
_NO_RECURRENCE: dict[str, Any] = {"layer_types": ["full_attention"] * 2, "head_dim": 16}
_HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
}
_SHARED_EXPERT: dict[str, Any] = _EXPERTS | {
    "num_experts": 8,
    "shared_expert_intermediate_size": 16,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "depth": 1,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": 32,
}


def _config(model_type: str, **fields: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **(SHAPE | fields))


MORE_CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3_moe": _config("qwen3_moe", **_EXPERTS, num_experts=8, head_dim=16),
    "glm4_moe": _config("glm4_moe", **_ROUTED, head_dim=16),
    "deepseek_v3": _config("deepseek_v3", **(_ROUTED | _LATENT)),
    "glm4_moe_lite": _config(
        "glm4_moe_lite",
        **(
            {name: value for name, value in (_ROUTED | _LATENT).items() if "first_k" not in name}
            | {"mlp_layer_types": ["dense", "sparse"], "v_head_dim": 20}
        ),
    ),
    "ernie4_5_moe": _config(
        "ernie4_5_moe",
        moe_intermediate_size=16,
        moe_k=2,
        moe_num_experts=8,
        moe_num_shared_experts=1,
        pad_token_id=0,
    ),
    "qwen3_next": _config(
        "qwen3_next",
        **(_EXPERTS | _NO_RECURRENCE),
        num_experts=8,
        shared_expert_intermediate_size=16,
    ),
    "qwen3_5_text": _config("qwen3_5_text", **_NO_RECURRENCE),
    "mellum": _config(
        "mellum",
        **_EXPERTS,
        num_experts=8,
        head_dim=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        num_nextn_predict_layers=1,
    ),
    "hy_v3": _config(
        "hy_v3",
        **_EXPERTS,
        num_experts=8,
        num_shared_experts=1,
        head_dim=16,
        mlp_layer_types=["dense", "sparse"],
    ),
    "exaone4": _config(
        "exaone4",
        head_dim=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "exaone_moe": _config(
        "exaone_moe",
        **_EXPERTS,
        num_experts=8,
        head_dim=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
    ),
    "exaone4_5": AutoConfig.for_model(
        "exaone4_5",
        text_config=SHAPE
        | {
            "model_type": "exaone4",
            "head_dim": 16,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=_VISION | {"num_key_value_heads": 2},
    ),
    "gemma3_text": _config(
        "gemma3_text",
        head_dim=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=True,
    ),
    "mimo_v2_flash": _config(
        "mimo_v2_flash",
        **_EXPERTS,
        num_hidden_layers=3,
        num_key_value_heads=1,
        n_routed_experts=8,
        head_dim=24,
        v_head_dim=16,
        sliding_window_size=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "gpt_oss": _config(
        "gpt_oss",
        num_experts_per_tok=2,
        num_local_experts=4,
        head_dim=16,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "step3p5": config_from_dict(
        SHAPE
        | {
            "model_type": "step3p5",
            "num_hidden_layers": 3,
            "head_dim": 16,
            "num_attention_groups": 2,
            "layer_types": ["full_attention", *["sliding_attention"] * 5],
            "attention_other_setting": {"num_attention_heads": 6},
            "sliding_window": 9,
            "rope_theta": [50000.0, *[10000.0] * 5],
            "partial_rotary_factors": [0.5, *[1.0] * 5],
            "moe_layers_enum": "1,2",
            "moe_num_experts": 8,
            "moe_top_k": 2,
            "moe_intermediate_size": 16,
            "share_expert_dim": 16,
            "moe_router_scaling_factor": 3.0,
            # Low enough to be met.
            "swiglu_limits": [0.0, 0.0, 0.4, 0.0, 0.0, 0.0],
            "swiglu_limits_shared": [0.0, 0.0, 0.6, 0.0, 0.0, 0.0],
            "num_nextn_predict_layers": 3,
            "pad_token_id": 0,
        }
    ),
    "step3p7": AutoConfig.for_model(
        "step3p7",
        text_config=SHAPE
        | {
            "head_dim": 16,
            "layer_types": ["full_attention", "sliding_attention"] + ["full_attention"] * 3,
            "mlp_layer_types": ["dense"] * 5,
            "num_nextn_predict_layers": 3,
            "sliding_window": 9,
            "swiglu_limits": [None] * 5,
            "swiglu_limits_shared": [None] * 5,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
}
"""Mixtures of experts, latent attention, (1 + w) norms, windows, sinks, values of another size than
keys: targets of the other families."""

LATENT_CONFIGS: dict[str, PretrainedConfig] = {
    "deepseek_v3-yarn": _config("deepseek_v3", **(_ROUTED | _LATENT), rope_parameters=_YARN),
    "deepseek_v3-plain-query": _config(
        "deepseek_v3", **(_ROUTED | _LATENT | {"q_lora_rank": None})
    ),
    "deepseek_v2": _config("deepseek_v2", **(_ROUTED | _LATENT), topk_method="greedy"),
    "axk1": _config("axk1", **(_ROUTED | _LATENT)),
    "minicpm3": _config("minicpm3", **_LATENT),
    "mistral4": _config(
        "mistral4",
        **(_ROUTED | _LATENT),
        head_dim=8,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    ),
    "youtu": _config("youtu", **_LATENT),
}
"""Latent attention as other models have it. ``MORE_CONFIGS`` has DeepSeek-V3's and GLM's."""


HYBRID_CONFIGS: dict[str, PretrainedConfig] = {
    "qwen3_next-hybrid": _config("qwen3_next", **(_HYBRID | _SHARED_EXPERT)),
    "qwen3_5": AutoConfig.for_model("qwen3_5", text_config=SHAPE | _HYBRID, vision_config=_VISION),
    "qwen3_5_moe": AutoConfig.for_model(
        "qwen3_5_moe", text_config=SHAPE | _HYBRID | _SHARED_EXPERT, vision_config=_VISION
    ),
}
"""Most layers are gated delta nets; Qwen3.5's are published beside a vision tower."""


def make_checkpoint(
    folder: Path,
    kind: str,
    *,
    seed: int = 0,
    eos: int | None = None,
    std: float = 0.3,
    family: HeadFamily = MIMO,
    form: HeadForm | None = None,
    num_modules: int = 1,
    **shape: Any,
) -> Path:
    """A checkpoint of ``kind`` in ``folder``, its MTP head in ``family``'s names beside the target.

    ``std`` is far above a trained model's, so that greedy decoding does not settle on one token.
    """
    torch.manual_seed(seed)
    base = (CONFIGS | MORE_CONFIGS | HYBRID_CONFIGS | LATENT_CONFIGS)[kind]
    config = type(base).from_dict(base.to_dict() | shape | {"eos_token_id": eos})
    model = whole_class(config).from_config(config, dtype=torch.float32)
    randomise(model, std)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    head = DraftHead(family, model, *[form or HeadForm()] * num_modules)
    randomise(head, std)
    add_head(folder, checkpoint_tensors(head))
    if kind == "mimo":
        edit_config(folder, model_type="mimo", architectures=["MiMoForCausalLM"])
    types = types_in(raw_config(str(folder)))
    if family.model_types is not None and not family.model_types & types:
        # A head that no such model is published with.
        edit_config(folder, **{CONFIG_FIELD: {"family": family.name}})
    return folder


def whole_class(config: PretrainedConfig) -> Any:
    """The class of all that a checkpoint holds, a vision tower included."""
    has_vision = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if has_vision else auto_class_for(config)


@torch.no_grad()
def randomise(module: torch.nn.Module, std: float) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            # Decays near 0.9, so that a recurrent state holds more than the newest token.
            parameter.normal_(mean=-1.0, std=0.5)
        elif parameter.dim() > 1:
            parameter.normal_(std=std)
        else:
            parameter.normal_(mean=1.0, std=0.1)


def checkpoint_tensors(head: DraftHead) -> dict[str, Tensor]:
    """The head as its checkpoint holds it: its family's names, every expert apart, matrices of its
    own under its block."""
    tensors: dict[str, Tensor] = {}
    own = {"embedding.weight": "embed_tokens.weight", "output.weight": "lm_head.weight"}
    for ours, tensor in head.state_dict().items():
        module, inner = head.owner_of(ours)
        block = head.family.tensor_name("block.", module.number)
        theirs = block + own[inner] if inner in own else head.tensor_name(ours)
        parts = expert_parts(theirs, tensor.shape)
        if parts is None:
            tensors[theirs] = tensor
            continue
        rows = next(iter(parts.values()))[0]
        tensors |= dict(zip(parts, tensor.flatten(0, 1).split(rows), strict=True))
    return tensors


def add_head(folder: Path, tensors: dict[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    both = load_file(file) | {name: t.contiguous() for name, t in tensors.items()}
    save_file(both, file, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# What byte 0 is written as in a byte-level vocabulary: no text of a test has it.
BOS = "\u0100"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('No tools.\\nNone.') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def add_tokenizer(folder: Path, *, chat_template: str | None = None) -> None:
    """A byte-level tokenizer of 256 entries: one token a byte, any text. With a chat template it
    puts ``BOS`` before every text, as the tokenizers of many chat models do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    if chat_template is not None:
        bos_id = alphabet.index(BOS)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]
        )
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS)
        fast.chat_template = chat_template
    fast.save_pretrained(folder)


def load_tiny(
    folder: Path,
    *,
    with_head: bool = True,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = ALONE,
    keeps_latents: bool = True,
    kv_dtype: KvDtype = KvDtype.AUTO,
    quant: QuantMode = QuantMode.AUTO,
    head: Path | None = None,
    draft_vocab: int | None = None,
    draft_vocab_from: Path | None = None,
) -> LoadedModel:
    """``head`` is the folder of a head made apart."""
    where = torch.device(device), dtype
    head_ref = None if head is None else str(head)
    return load_model(
        Loading(
            str(folder),
            head_ref,
            with_head,
            *where,
            ranks=ranks,
            keeps_latents=keeps_latents,
            kv_dtype=kv_dtype,
            quant=quant,
            draft_vocab=draft_vocab,
            draft_vocab_from=None if draft_vocab_from is None else str(draft_vocab_from),
        )
    )


def make_speculator(
    model: LoadedModel,
    *,
    max_batch_size: int,
    room: int,
    attention: str = "sdpa",
    accept: AcceptanceRule | None = None,
    max_spec_tokens: int = 8,
) -> Speculator:
    target = model.target
    cache = KvCache(
        model.kv_shapes,
        max_batch_size=max_batch_size,
        room=room,
        dtype=target.dtype,
        device=target.device,
        state_shapes=model.state_shapes,
        query_len=max_spec_tokens + 1,
        kv_format=model.kv_format,
    )
    backend = DECODE_BACKENDS[attention]
    return Speculator(target, model.head, cache, backend, accept or Greedy())


def decode_prompts(
    spec: Speculator,
    runner: Runner,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    seed: int = 0,
    max_num_tokens: int = 1 << 20,
) -> Generated:
    """Prefill, and decode to the end; ``max_num_tokens`` bounds a prefill group."""
    prefilled = prefill(spec, prompts, max_num_tokens, seed)
    begin_decoding(spec, runner.state, prefilled, tokens_left=max_new_tokens - 1, seed=seed)
    return generate(runner, prefilled.last.tolist())


def random_prompts(count: int, *, vocab: int = 64, seed: int = 0) -> list[list[int]]:
    """Prompts of unequal length, 3 tokens and more."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 24, (count,), generator=generator).tolist()
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


def reference_model(folder: Path) -> PreTrainedModel:
    """The same weights through transformers alone, with its own attention and cache."""
    from cgbench.models.checkpoint import read_config

    config = read_config(str(folder))
    model: PreTrainedModel = auto_class_for(config).from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


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
