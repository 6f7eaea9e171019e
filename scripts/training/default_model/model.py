"""The target with its head: made anew, rounded to the values that ship, and saved."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from cgbench.models.attention_hook import ATTENTION_NAME
from cgbench.models.checkpoint import config_from_dict
from cgbench.models.heads.head import DraftHead
from cgbench.models.random_weights import draw_head
from cgbench.models.target import Target
from default_model.config import CONFIG, EOS_ID
from mtp_training.model import STATED, TRAINED, Model, head_tensors, ready_to_save


def new_model(device: torch.device) -> Model:
    with torch.device(device):
        backbone = AutoModelForCausalLM.from_config(
            config_from_dict(CONFIG), dtype=torch.float32, attn_implementation=ATTENTION_NAME
        )
        target = Target(backbone)
    with torch.device("meta"):
        head = DraftHead(TRAINED, target.model)
    draw_head(head, target.model, device)
    return Model(target, head, device)


@torch.no_grad()
def round_to_bfloat16(module: nn.Module) -> None:
    """Give the weights the values that will ship, so that the head learns from exactly those."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


def save_model(model: Model, data: Path, folder: Path) -> None:
    """The checkpoint in MiMo's layout, with the tokenizer and prompts from ``data``."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: ready_to_save(t) for name, t in model.target.model.state_dict().items()}
    save_file(
        own | head_tensors(model.head), folder / "model.safetensors", metadata={"format": "pt"}
    )
    generation = {"do_sample": False, "eos_token_id": EOS_ID, "pad_token_id": EOS_ID}
    for name, content in (("config", CONFIG | STATED), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "prompts.jsonl"):
        shutil.copy(data / name, folder / name)
