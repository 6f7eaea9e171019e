"""Qwen3.5 in a GGUF file as llama.cpp writes it, its MTP head as a block past the last."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

ROTARY_DIMS, MROPE = 12, (2, 2, 2)
ROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "partial_rotary_factor": ROTARY_DIMS / 16,
    "mrope_section": [*MROPE],
    "mrope_interleaved": True,
}

# llama.cpp's names of the tensors of a full-attention layer.
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_HEAD = {
    "mtp.fc": "eh_proj",
    "mtp.pre_fc_norm_embedding": "enorm",
    "mtp.pre_fc_norm_hidden": "hnorm",
    "mtp.norm": "shared_head_norm",
}

Store = Callable[[Any, str, np.ndarray], None]


def plain(writer: Any, name: str, values: np.ndarray) -> None:
    """Store float32 as it is."""
    writer.add_tensor(name, values)


def in_q8_0(writer: Any, name: str, values: np.ndarray) -> None:
    """Store the head's matrices in blocks of 8-bit numbers, and the rest in float32."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    if name.startswith("blk.2.") and values.ndim > 1 and values.shape[-1] % 32 == 0:
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def write_qwen_gguf(folder: Path, file: Path, config: Any, store: Store = plain) -> None:
    """Write the checkpoint in ``folder``, of ``config``, to ``file``. Every layer has full
    attention."""
    import gguf

    is_mixture = hasattr(config, "num_experts")
    arch = "qwen35moe" if is_mixture else "qwen35"
    writer = gguf.GGUFWriter(file, arch)
    writer.add_block_count(config.num_hidden_layers + 1)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(ROTARY_DIMS)
    writer.add_array(f"{arch}.rope.dimension_sections", [*MROPE, 0])
    for name, value in {
        "full_attention_interval": 1,
        "nextn_predict_layers": 1,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 48,
    }.items():
        writer.add_uint32(f"{arch}.{name}", value)
    if is_mixture:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([chr(97 + n) if n < 26 else f"<{n}>" for n in range(config.vocab_size)])
    writer.add_token_merges(["a b"])
    tensors = _with_stacked_experts(load_file(folder / "model.safetensors"))
    for name, tensor in tensors.items():
        for theirs, values in _stored(name, tensor, config.num_hidden_layers):
            store(writer, theirs, values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(name: str, tensor: Tensor, num_layers: int) -> list[tuple[str, Tensor]]:
    """The tensors of the file that ``name`` becomes. Every norm has 1 added."""
    module = name.removesuffix(".weight")
    values = tensor + 1 if module.endswith("norm") or "pre_fc_norm" in module else tensor
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if module in outside:
        return [(f"{outside[module]}.weight", values)]
    if module in _HEAD:
        return [(f"blk.{num_layers}.nextn.{_HEAD[module]}.weight", values)]
    layer = module.removeprefix("model.").removeprefix("mtp.").removeprefix("layers.")
    number, _, rest = layer.partition(".")
    block = f"blk.{num_layers if module.startswith('mtp.') else number}"
    if rest == "mlp.experts.gate_up_proj":
        gate, up = values.chunk(2, dim=1)
        return [(f"{block}.ffn_gate_exps.weight", gate), (f"{block}.ffn_up_exps.weight", up)]
    if rest == "mlp.experts.down_proj":
        return [(f"{block}.ffn_down_exps.weight", values)]
    return [(f"{block}.{_LAYER[rest]}.weight", values)]


def _with_stacked_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with the experts of a layer in one, as llama.cpp stores them."""
    by_layer: dict[str, dict[int, Tensor]] = {}
    for name in [name for name in tensors if ".mlp.experts." in name and name.count(".") > 5]:
        layer, _, rest = name.partition(".mlp.experts.")
        number, projection = rest.split(".")[:2]
        by_layer.setdefault(f"{layer}.mlp.experts.{projection}", {})[int(number)] = tensors.pop(
            name
        )
    stacked = {
        name: torch.stack([parts[n] for n in sorted(parts)]) for name, parts in by_layer.items()
    }
    for name in [name for name in stacked if name.endswith(".gate_proj")]:
        up = stacked.pop(name.replace("gate_proj", "up_proj"))
        stacked[name.replace("gate_proj", "gate_up_proj")] = torch.cat([stacked.pop(name), up], 1)
    return tensors | stacked
